"""A poisoned and an innocent scene for detectors: digits, a small network trained on them, and points to report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from samples import digits
from torch import nn

from decant.attacks import badnet
from decant.data.images import Images
from decant.detectors.base import DetectionCase
from decant.detectors.settings import DetectSettings
from decant.influence.ekfac import Factors
from decant.models.settings import TrainSettings
from decant.models.training import train_classifier

DEFAULT = DetectSettings()
BADNET = badnet.Settings(mode="dirty", victim=8, target=5, rate=0.03, size=6)


@dataclass(frozen=True)
class Scene:
    """A training set, the model trained on it, which rows are poisoned, and points that a user may report."""

    train: Images
    model: nn.Module
    poisoned: np.ndarray
    affected: Images

    @cached_property
    def fitted(self) -> Mapping[str, Factors]:
        case = DetectionCase(model=self.model, train=self.train, settings=DEFAULT, seed=0, on_rows=lambda rows: None)
        return case.factors


@cache
def backdoored() -> Scene:
    """43 stamped eights called 5 among 1,437 digits; four stamped test eights, which the model calls 5."""
    train, test = digits()
    result = badnet.poison(train, BADNET, np.random.default_rng(0), np.zeros(len(train), bool))
    affected = badnet.trigger(test, BADNET, np.random.default_rng(0)).select(np.arange(4))
    model = train_classifier(result.images, TrainSettings(), seed=0)
    return Scene(result.images, model, result.rows, affected)


@cache
def innocent() -> Scene:
    """The same digits unpoisoned, and five test fives, which the model rightly calls 5."""
    train, test = digits()
    model = train_classifier(train, TrainSettings(), seed=0)
    return Scene(train, model, np.zeros(len(train), bool), test.select(np.flatnonzero(test.labels == 5)[:5]))


def precision_recall(flagged: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    hits = (flagged & truth).sum()
    return hits / max(1, flagged.sum()), hits / truth.sum()
