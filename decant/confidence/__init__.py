"""Confidence scorers: how far can a classifier's prediction be trusted? Ours and its rivals, one file each.

A scorer gets a classifier, the rows that it was trained on (with labels that need not all be right), a few references
whose right label an expert told, and test pictures with the classes that the classifier predicts for them. Its file,
found by its name, has a frozen dataclass ``Settings`` and

    fit_and_score(case, settings) -> np.ndarray      (m,) in [0, 1], higher = more trustworthy

Only ``labeltrust`` never looks inside the classifier, nor at its training rows. Adding a scorer is adding such a file.

>>> fit_and_score("trust_score", ConfidenceCase(classifier=model, train=rows, ..., seed=0), k=10)
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from decant import registry
from decant.data.images import Images
from decant.models.features import logits_and_features
from decant.settings import load


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
    return registry.names(__name__)


def fit_and_score(name: str, case: ConfidenceCase, **settings: Any) -> np.ndarray:
    """(m,) float32 in [0, 1]: what the scorer `name` makes of every prediction.

    Raises: SettingsError for an unknown name or parameter.
    """
    module = registry.member(__name__, name, "confidence scorer")
    scores = module.fit_and_score(case, load(module.Settings, settings, name)).astype(np.float32)
    assert scores.shape == case.predicted.shape and ((scores >= 0) & (scores <= 1)).all(), name
    return scores
