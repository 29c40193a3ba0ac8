"""Classification auto-encoder (Razmi and Xiong, "Classification Auto-Encoder based Detector against Diverse Data
Poisoning Attacks", DBSec 2023, arXiv 2108.04206).

An auto-encoder that must also predict the class from its code: a row with manipulated pixels is reconstructed badly, a
row with a wrong label is classified badly, so one error finds both.

    error(x, l) = weight ||x - D(E(x))||^2 / V - log softmax(C(E(x)))_l,    V: mean over rows of ||x - mean||^2

Reconstructed from the abstract: the networks, the balance of the two errors and the rule are ours. It is the paper's
CAE+, which needs no clean set to train on: the training has `rounds` equal parts, and each after the first leaves out
the `trimmed` share of the rows with the largest errors. The references are not trained on; a row is flagged if its
error is larger than that of the share `quantile` of them.

Cost: as many steps as the plain classifier, with a network about three times as expensive.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from decant.label_checks.base import CheckCase, CheckResult, require_references
from decant.models.training import EVAL_BATCH, as_float, epochs_of_batches, labels_to_device, step, to_device
from decant.runtime import device
from decant.settings import Block, Fraction, Positive
from decant.streams import child, torch_stream

CODE = 64


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    rounds: Positive = 3
    trimmed: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Share of the rows that the later rounds leave out."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Of the reconstruction error, which is the unexplained share of the variance, beside the classification error in
    nats."""
    quantile: Fraction = 0.95
    """Share of the references with a smaller error than any flagged row."""


class AutoEncoder(nn.Module):
    """A convolutional auto-encoder with a linear classifier on its code."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        height, width, channels = shape
        self.small = -(-height // 4), -(-width // 4)
        size = self.small[0] * self.small[1] * 32
        self.encoder = nn.Sequential(
            *_down(channels, 16), *_down(16, 32), nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, CODE)
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(CODE, classes))
        self.widen = nn.Sequential(nn.ReLU(), nn.Linear(CODE, size), nn.ReLU())
        self.decoder = nn.Sequential(*_up(32, 16), nn.ReLU(), *_up(16, channels), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
        """(reconstruction in [0, 1], logits)"""
        code = self.encoder(x - 0.3)
        wide = self.decoder(self.widen(code).view(len(x), 32, *self.small))
        return wide[..., : x.shape[2], : x.shape[3]], self.classifier(code)


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Train the auto-encoder in `rounds`; flag rows with a larger error than most references."""
    require_references(case, "cae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(case.seed, "cae", "weights"))
        model = AutoEncoder(case.images.shape, case.images.classes).to(device())
    x, y = to_device(case.images.pixels), labels_to_device(case.known.labels)
    scale, generator = settings.weight / float(case.pixels.var(0).sum()), torch_stream(case.seed, "cae", "batches")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = np.flatnonzero(case.others)
    epochs, kept = -(-case.train.epochs // settings.rounds), rows
    for _ in range(settings.rounds):
        on_kept = torch.from_numpy(kept)
        model.train()
        for batch in epochs_of_batches(len(kept), case.train.batch_size, epochs, generator):
            picked = on_kept[batch].to(x.device)
            step(optimizer, row_errors(model, as_float(x[picked]), y[picked], scale)[0].mean())
        error, suggested = _errors_and_classes(model.eval(), x, y, scale)
        kept = np.sort(rows[np.argsort(error[rows], kind="stable")][: round((1 - settings.trimmed) * len(rows))])
    limit = float(np.quantile(error[case.references], settings.quantile))
    flagged = error > limit
    return CheckResult(
        suspicion=error,
        flagged=flagged,
        suggested=suggested,
        note=f"{flagged.sum()} rows have a larger error than {settings.quantile:.0%} of the references",
    )


def row_errors(
    model: AutoEncoder, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], scale: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
    """(scale ||x - D(E(x))||^2 - log softmax(C(E(x)))_y of every row, logits)"""
    rebuilt, logits = model(x)
    return scale * (x - rebuilt).square().flatten(1).sum(1) + F.cross_entropy(logits, y, reduction="none"), logits


@torch.no_grad()
def _errors_and_classes(model: AutoEncoder, x: Tensor, y: Tensor, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """((n,) errors under the labels, (n,) most likely class). x: (n, c, h, w) uint8."""
    errors, classes = [], []
    for rows in torch.arange(len(x), device=x.device).split(EVAL_BATCH):
        error, logits = row_errors(model, as_float(x[rows]), y[rows], scale)
        errors.append(error.cpu())
        classes.append(logits.argmax(1).cpu())
    return torch.cat(errors).numpy(), torch.cat(classes).numpy()
