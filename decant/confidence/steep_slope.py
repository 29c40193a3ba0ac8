"""Steep Slope (Luo et al., "Learning to Predict Trustworthiness with Steep Slope Loss", NeurIPS 2021).

A second network, the oracle, learns from the training rows whether the classifier is right. As it mostly is, plain
cross-entropy calls everything trustworthy; the steep slope loss pushes both kinds away from 0:

    right:  exp(-a z / (1 + |z|)) - exp(-a),  a = `right`;     wrong:  exp(b z / (1 + |z|)) - exp(-b),  b = `wrong`
    confidence(x) = sigmoid(z(x))

Loss and slopes (1 and 3) are those of the paper and its code (MIT; none of it is used). Changed: the oracle is a copy
of the classifier with one output instead of a larger network pretrained on other pictures. It takes wrong labels among
the training rows for wrong predictions, and where the classifier fits all its rows it learns to trust everything.

Cost: as many steps as training the classifier for `epochs`.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decant.confidence.base import ConfidenceCase
from decant.models.training import as_float, epochs_of_batches, predict, step, to_device
from decant.runtime import device
from decant.settings import Block, Positive

RATE, MOMENTUM = 1e-2, 0.9


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    right: Annotated[float, Field(ge=0.01, le=20)] = 1.0
    """Slope for right predictions (alpha+ in the paper)."""
    wrong: Annotated[float, Field(ge=0.01, le=20)] = 3.0
    epochs: Positive = 10
    batch_size: Positive = 64


def fit_and_score(case: ConfidenceCase, settings: Settings) -> np.ndarray:
    is_right = torch.from_numpy(case.inside_train[0].argmax(1) == case.known.labels).to(device())
    x = to_device(case.train.pixels)
    oracle = with_one_output(case.classifier, case.seed).to(device()).train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=RATE, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(case.seed)
    for batch in epochs_of_batches(len(x), settings.batch_size, settings.epochs, generator):
        rows = batch.to(x.device)
        loss = steep_slope(oracle(as_float(x[rows])).squeeze(1), is_right[rows], settings.right, settings.wrong).mean()
        step(optimizer, loss)
    return torch.from_numpy(predict(oracle, case.pixels)).squeeze(1).sigmoid().numpy()


def steep_slope(z: Tensor, is_right: Tensor, right: float, wrong: float) -> Tensor:
    """(n,) losses of the oracle's outputs z (n,)."""
    slide = z / (1 + z.abs())
    for_right = torch.exp(-right * slide) - np.exp(-right)
    for_wrong = torch.exp(wrong * slide) - np.exp(-wrong)
    return torch.where(is_right, for_right, for_wrong)


def with_one_output(classifier: nn.Module, seed: int) -> nn.Module:
    """A copy whose last linear layer is a fresh one with a single output."""
    copy = deepcopy(classifier)
    name, last = [(name, module) for name, module in copy.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        setattr(copy.get_submodule(parent), attribute, nn.Linear(last.in_features, 1))
    return copy
