"""Steep Slope (Luo et al., "Learning to Predict Trustworthiness with Steep Slope Loss", NeurIPS 2021).

A second network, the oracle, learns from the training rows whether the classifier is right. As it mostly is, plain
cross-entropy calls everything trustworthy; the steep slope loss pushes the outputs for both kinds away from 0.

    confidence(x) = sigmoid(z(x)),     z: the oracle's output
    loss = exp(-a z / (1 + |z|)) - exp(-a)  where the classifier is right, a = `right`
           exp( b z / (1 + |z|)) - exp(-b)  where it is wrong, b = `wrong`

Loss and slopes (1 and 3) are those of the paper and its code (MIT; none of it is used). Changed: the oracle is a copy
of the classifier with one output instead of a larger network pretrained on other pictures. A wrong label among the
training rows counts as a wrong prediction, and where the classifier fits all its rows the oracle learns to trust
everything.

Cost: as many steps as training the classifier for `epochs`.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from decant.confidence.base import ConfidenceCase
from decant.models.training import as_float, epochs_of_batches, predict, step, to_device
from decant.runtime import device
from decant.settings import Block, Positive
from decant.streams import child, torch_stream

RATE, MOMENTUM = 1e-2, 0.9


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    right: Annotated[float, Field(ge=0.01, le=20)] = 1.0
    """Slope for right predictions (alpha+ in the paper)."""
    wrong: Annotated[float, Field(ge=0.01, le=20)] = 3.0
    """Slope for wrong predictions (alpha- in the paper)."""
    epochs: Positive = 10
    batch_size: Positive = 64


def fit_and_score(case: ConfidenceCase, settings: Settings) -> Float[np.ndarray, " m"]:
    """Train the oracle on the training rows and apply it to the test pictures."""
    is_right = torch.from_numpy(case.inside_train[0].argmax(1) == case.known.labels).to(device())
    x = to_device(case.train.pixels)
    oracle = with_one_output(case.classifier, child(case.seed, "steep_slope", "weights")).to(device()).train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=RATE, momentum=MOMENTUM)
    generator = torch_stream(case.seed, "steep_slope", "batches")
    for batch in epochs_of_batches(len(x), settings.batch_size, settings.epochs, generator):
        rows = batch.to(x.device)
        loss = steep_slope(oracle(as_float(x[rows])).squeeze(1), is_right[rows], settings.right, settings.wrong).mean()
        step(optimizer, loss)
    return torch.from_numpy(predict(oracle, case.pixels)).squeeze(1).sigmoid().numpy()


def steep_slope(
    z: Float[Tensor, " n"], is_right: Bool[Tensor, " n"], right: float, wrong: float
) -> Float[Tensor, " n"]:
    """The losses of the oracle's outputs z."""
    slide = z / (1 + z.abs())
    for_right = torch.exp(-right * slide) - np.exp(-right)
    for_wrong = torch.exp(wrong * slide) - np.exp(-wrong)
    return torch.where(is_right, for_right, for_wrong)


def with_one_output(classifier: nn.Module, seed: int) -> nn.Module:
    """A copy with its last linear layer replaced by a fresh one with a single output."""
    copy = deepcopy(classifier)
    name, last = [(name, module) for name, module in copy.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        setattr(copy.get_submodule(parent), attribute, nn.Linear(last.in_features, 1))
    return copy
