"""ASD, adaptive splitting (Gao et al., "Backdoor Defense via Adaptively Splitting Poisoned Dataset", CVPR 2023).

The set is divided into a clean pool, which is trained on with its labels, and a polluted pool, which is trained on
without them (MixMatch). The division is made anew before every epoch, in three stages:

    1  the references, and of every class the rows with the smallest losses: `more` further ones with each epoch
    2  the `share` of all rows with the smallest losses
    3  meta-split: the `share` whose loss falls least when a copy of the network learns the whole set with its labels
       for one epoch; a backdoor is learnt fast, a hard clean row is not

    suspicion(x, l) = split loss of the last network = 0.1 CE + RCE  (symmetric cross-entropy, as in their code)

A row of the last polluted pool is flagged if the last network predicts another class. This rule is ours: ASD itself
removes no rows, and half of the set is always in its polluted pool. The rest follows the paper and the settings of its
public code (no licence; none of it is used): temperature .5, mixing Beta(.75, .75), weight 15 of the unlabelled loss
rising from 0, Adam at .002 and, for the copy, .015 on the deeper half of the network; the references are its 10 clean
seeds per class. Changed: 20 epochs of `iterations` steps instead of 120 of 1024, and in stage 1 more rows with every
epoch; a flip besides the random shift only where `train.augment` says so.

Cost: 20 x `iterations` steps on 192 rows, each seen twice, and 5 epochs of half a copy: as much as 6 epochs of 60,000
rows.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from decant.label_checks.base import CheckCase, CheckResult, require_references
from decant.models.augment import augmented
from decant.models.networks import build
from decant.models.training import (
    architecture_of,
    as_float,
    epochs_of_batches,
    labels_to_device,
    predict,
    step,
    to_device,
)
from decant.runtime import device
from decant.settings import Block, Count, Positive
from decant.streams import child, stream, torch_stream

RATE, COPY_RATE = 2e-3, 1.5e-2
TEMPERATURE, BETA, UNLABELLED = 0.5, 0.75, 15.0
VIEWS = 2  # of an unlabelled row; its label is the mean prediction over them


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    first: Positive = 10
    """Epochs of stage 1."""
    second: Count = 5
    third: Count = 5
    iterations: Positive = 60
    """Steps of an epoch."""
    more: Positive = 10
    """Rows per class that each epoch of stage 1 adds to the clean pool."""
    share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """Of all rows, in the clean pool of stages 2 and 3."""
    batch_size: Positive = 64


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Train by adaptive splitting; flag rows of the last polluted pool with a disputed label."""
    require_references(case, "asd")
    labels, learner = case.known.labels, _Learner(case, settings)
    epochs = settings.first + settings.second + settings.third
    clean = np.zeros(len(labels), bool)
    for epoch in range(epochs):
        clean = _clean_pool(learner, case, settings, epoch)
        learner.mixmatch_epoch(clean, (epoch + 1) / epochs)
    logits = predict(learner.model, case.images.pixels)
    flagged = ~clean & (logits.argmax(1) != labels)
    return CheckResult(
        suspicion=split_losses(logits, labels),
        flagged=flagged,
        suggested=logits.argmax(1),
        note=f"{flagged.sum()} of the {(~clean).sum()} rows of the polluted pool are disputed by the last network",
    )


def _clean_pool(learner: "_Learner", case: CheckCase, settings: Settings, epoch: int) -> np.ndarray:
    """(n,) bool: the rows that this epoch trains on with their labels, by the epoch's stage."""
    labels, pixels = case.known.labels, case.images.pixels
    losses = split_losses(predict(learner.model, pixels), labels)
    if epoch < settings.first:
        return smallest_of_each_class(losses, labels, epoch * settings.more) | ~case.others
    if epoch >= settings.first + settings.second:
        losses = losses - split_losses(predict(learner.copy_trained_on_all(), pixels), labels)
    clean = np.zeros(len(labels), bool)
    clean[np.argsort(losses, kind="stable")[: round(settings.share * len(labels))]] = True
    return clean


def split_losses(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Symmetric cross-entropy (Wang et al. 2019), probabilities clipped at 1e-7, log 0 taken as log 1e-4."""
    log_p = np.log(np.clip(torch.from_numpy(logits).softmax(1).numpy(), 1e-7, 1.0))[np.arange(len(labels)), labels]
    return -0.1 * log_p - np.log(1e-4) * (1 - np.exp(log_p))


def smallest_of_each_class(
    losses: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], wanted: int
) -> Bool[np.ndarray, " n"]:
    """The `wanted` rows of the smallest loss in every class, at most half of it."""
    mask = np.zeros(len(losses), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mask[rows[np.argsort(losses[rows], kind="stable")[: min(wanted, len(rows) // 2)]]] = True
    return mask


class _Learner:
    """The network, and its training on both pools."""

    def __init__(self, case: CheckCase, settings: Settings):
        self.model = build(architecture_of(case.images, case.train), seed=child(case.seed, "asd")).to(device())
        self.x, self.y = to_device(case.images.pixels), labels_to_device(case.known.labels)
        self.settings, self.classes = settings, case.images.classes
        self.flip = case.train.augment == "shift_flip"
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.generator = torch_stream(case.seed, "asd", "batches")
        self.rng = stream(case.seed, "asd", "mixing")

    def mixmatch_epoch(self, clean: np.ndarray, ramp: float) -> None:
        """Train for one epoch. clean: (n,) bool; ramp: share of its full weight that the unlabelled loss has."""
        self.model.train()
        pools = [torch.from_numpy(np.flatnonzero(pool)).to(self.x.device) for pool in (clean, ~clean)]
        size = self.settings.batch_size
        for _ in range(self.settings.iterations):
            labelled, unlabelled = (
                pool[torch.randint(len(pool), (size,), generator=self.generator).to(pool.device)] for pool in pools
            )
            loss = self._loss(labelled, unlabelled, UNLABELLED * ramp)
            step(self.optimizer, loss)
        self.model.eval()

    def _loss(self, labelled: Tensor, unlabelled: Tensor, weight: float) -> Tensor:
        """MixMatch loss: all views with their labels or sharpened predictions, each mixed with another view."""
        views = [self._view(unlabelled) for _ in range(VIEWS)]
        inputs = torch.cat([self._view(labelled), *views])
        guess = self._guess(views)
        targets = torch.cat([F.one_hot(self.y[labelled], self.classes).float(), *[guess] * VIEWS])
        share = float(self.rng.beta(BETA, BETA))
        share = max(share, 1 - share)
        partner = torch.randperm(len(inputs), generator=self.generator).to(inputs.device)
        logits = self.model(share * inputs + (1 - share) * inputs[partner])
        mixed = share * targets + (1 - share) * targets[partner]
        n = len(labelled)
        supervised = F.cross_entropy(logits[:n], mixed[:n])
        return supervised + weight * (logits[n:].softmax(1) - mixed[n:]).square().mean()

    def _view(self, rows: Tensor) -> Tensor:
        return augmented(as_float(self.x[rows]), "shift_flip" if self.flip else "shift", self.generator)

    @torch.no_grad()
    def _guess(self, views: list[Tensor]) -> Tensor:
        sharp = torch.stack([self.model(view).softmax(1) for view in views]).mean(0) ** (1 / TEMPERATURE)
        return sharp / sharp.sum(1, keepdim=True)

    def copy_trained_on_all(self) -> nn.Module:
        """A copy of the network with its deeper half trained for one epoch on all rows with their labels."""
        copy = deepcopy(self.model).train()
        parameters = list(copy.parameters())
        optimizer = torch.optim.Adam(parameters[len(parameters) // 2 :], lr=COPY_RATE)
        for batch in epochs_of_batches(len(self.x), 2 * self.settings.batch_size, 1, self.generator):
            rows = batch.to(self.x.device)
            loss = F.cross_entropy(copy(as_float(self.x[rows])), self.y[rows])
            step(optimizer, loss)
        return copy.eval()
