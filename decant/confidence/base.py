"""Interface of the confidence scorers: their case, and `fit_and_score`, which runs one by name."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import nn

from decant.data.images import Images
from decant.models.features import logits_and_features
from decant.registry import CONFIDENCE_SCORERS
from decant.settings import load


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceCase:
    """What a confidence scorer is given; the truth is not part of it."""

    classifier: nn.Module
    """From (n, c, h, w) float32 in [0, 1] to logits, the output of its last linear layer; it is left unchanged."""
    train: Images
    """The rows that it was trained on, as given."""
    references: Int[np.ndarray, " r"]
    """Row numbers of `train`."""
    answers: Int[np.ndarray, " r"]
    """The right labels of the references."""
    pixels: UInt8[np.ndarray, "m h w c"]
    """The test pictures."""
    predicted: Int[np.ndarray, " m"]
    """The classes that the classifier predicts for them."""
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
    def inside_train(self) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, "n d"]]:
        """(logits, features) of the training rows; features: inputs of the last linear layer."""
        return logits_and_features(self.classifier, self.train.pixels)

    @cached_property
    def inside(self) -> tuple[Float[np.ndarray, "m classes"], Float[np.ndarray, "m d"]]:
        """(logits, features) of the test pictures."""
        return logits_and_features(self.classifier, self.pixels)


def names() -> list[str]:
    """Every confidence scorer's name."""
    return CONFIDENCE_SCORERS.names()


def fit_and_score(name: str, case: ConfidenceCase, **settings: Any) -> Float[np.ndarray, " m"]:
    """Run the scorer `name`; returns the confidence in every prediction, float32 in [0, 1].

    Raises: SettingsError for an unknown name or parameter.
    """
    module = CONFIDENCE_SCORERS.member(name, "confidence scorer")
    scores = module.fit_and_score(case, load(module.Settings, settings, name)).astype(np.float32)
    assert scores.shape == case.predicted.shape and ((scores >= 0) & (scores <= 1)).all(), name
    return scores
