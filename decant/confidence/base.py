"""What a judge of predictions is given, and how one is run by its name."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from decant.data.images import Images
from decant.models.features import logits_and_features
from decant.registry import Family
from decant.settings import load

FAMILY = Family("decant.confidence", ("fit_and_score",))


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceCase:
    """What a scorer is given. It never sees the truth."""

    classifier: nn.Module
    """(n, c, h, w) float32 in [0, 1] to logits, its last linear layer's output; is not changed."""
    train: Images
    """The rows that it was trained on, as given."""
    references: np.ndarray  # (r,) row numbers of `train`
    answers: np.ndarray  # (r,) their right labels
    pixels: np.ndarray  # (m, h, w, c) uint8, the test pictures
    predicted: np.ndarray  # (m,) the classes predicted for them
    seed: int

    @cached_property
    def known(self) -> Images:
        """The training rows as given, but the references under their right labels."""
        labels = self.train.labels.copy()
        labels[self.references] = self.answers
        return self.train.with_labels(labels)

    @property
    def trusted(self) -> Images:
        """The references alone, under their right labels."""
        return self.known.select(self.references)

    @cached_property
    def inside_train(self) -> tuple[np.ndarray, np.ndarray]:
        """(logits, features) of the training rows."""
        return logits_and_features(self.classifier, self.train.pixels)

    @cached_property
    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """(logits, features) of the test pictures."""
        return logits_and_features(self.classifier, self.pixels)


def names() -> list[str]:
    return FAMILY.names()


def fit_and_score(name: str, case: ConfidenceCase, **settings: Any) -> np.ndarray:
    """(m,) float32 in [0, 1]: what the scorer `name` makes of every prediction.

    Raises: SettingsError for an unknown name or parameter.
    """
    module = FAMILY.member(name, "confidence scorer")
    scores = module.fit_and_score(case, load(module.Settings, settings, name)).astype(np.float32)
    assert scores.shape == case.predicted.shape and ((scores >= 0) & (scores <= 1)).all(), name
    return scores
