"""Interface of the label checks: their case, their result, and `judge`, which runs one by name."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from torch import nn

from decant.data.images import Images
from decant.errors import StageError
from decant.models.features import logits_and_features
from decant.models.settings import TrainSettings
from decant.models.training import train_classifier
from decant.registry import LABEL_CHECKS
from decant.settings import load
from decant.streams import child

NO_SUGGESTION = -1


class TooFewReferences(StageError):
    """A check needs more references than the expert has confirmed."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a label check says of every row."""

    suspicion: Float[np.ndarray, " n"]
    """Higher where the label is more likely wrong. Comparable within one check only."""
    flagged: Bool[np.ndarray, " n"]
    """The rows that the check would remove by its own rule."""
    suggested: Int[np.ndarray, " n"]
    """The class that it predicts for the row, which may be the given one, or NO_SUGGESTION."""
    note: str
    """For people: what was found, and by which rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckCase:
    """What a label check is given; the truth is not part of it."""

    images: Images
    """The rows as given."""
    references: Int[np.ndarray, " m"]
    """Row numbers."""
    answers: Int[np.ndarray, " m"]
    """The right labels of the references."""
    train: TrainSettings
    """How every check trains its classifier."""
    seed: int

    def __post_init__(self) -> None:
        assert self.references.shape == self.answers.shape, (self.references.shape, self.answers.shape)

    @cached_property
    def known(self) -> Images:
        """The rows as given, but the references under their right labels."""
        labels = self.images.labels.copy()
        labels[self.references] = self.answers
        return self.images.with_labels(labels)

    @cached_property
    def trusted(self) -> Images:
        """The references alone, under their right labels."""
        return self.known.select(self.references)

    @cached_property
    def others(self) -> Bool[np.ndarray, " n"]:
        """The rows that are no references."""
        mask = np.ones(len(self.images), bool)
        mask[self.references] = False
        return mask

    @cached_property
    def model(self) -> nn.Module:
        """The plain classifier, trained on `known`."""
        return train_classifier(self.known, self.train, seed=child(self.seed, "label_checks", "classifier"))

    @cached_property
    def _inside(self) -> tuple[np.ndarray, np.ndarray]:
        return logits_and_features(self.model, self.images.pixels)

    @property
    def logits(self) -> Float[np.ndarray, "n classes"]:
        """The plain classifier's logits."""
        return self._inside[0]

    @property
    def features(self) -> Float[np.ndarray, "n d"]:
        """The inputs of the plain classifier's last layer."""
        return self._inside[1]

    @property
    def pixels(self) -> Float[np.ndarray, "n h*w*c"]:
        """Flattened pictures, float32 in [0, 1]."""
        return self.images.pixels.reshape(len(self.images), -1).astype(np.float32) / 255


def names() -> list[str]:
    """Every label check's name."""
    return LABEL_CHECKS.names()


def judge(name: str, case: CheckCase, **settings: Any) -> CheckResult:
    """Run the check `name`; a reference is flagged if and only if its given label is wrong.

    Raises: SettingsError for an unknown name or parameter; StageError where a library of the extra `peers` is missing,
    or where it needs references and gets too few.
    """
    module = LABEL_CHECKS.member(name, "label check")
    return _with_answers(module.judge(case, load(module.Settings, settings, name)), case)


def require_references(case: CheckCase, name: str) -> None:
    """Checks that there are two references of each of two classes. Raises: TooFewReferences."""
    counts = np.bincount(case.answers, minlength=case.images.classes)
    if (counts >= 2).sum() < 2:
        raise TooFewReferences(
            f"{name}: two references of each of two classes at least expected, {counts.tolist()} found"
        )


def cross_entropies(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """-log softmax(logits) at the labels, in nats."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def _with_answers(check: CheckResult, case: CheckCase) -> CheckResult:
    """The result with the expert's answers about the references: refuted labels get the largest suspicion of all rows,
    confirmed ones the smallest."""
    suspicion, flagged = check.suspicion.astype(np.float32), check.flagged.copy()
    suggested = check.suggested.astype(np.int64)
    assert np.isfinite(suspicion).all() and suspicion.shape == flagged.shape == suggested.shape == (len(case.images),)
    refuted = case.images.labels[case.references] != case.answers
    suspicion[case.references] = np.where(refuted, suspicion.max(), suspicion.min())
    flagged[case.references], suggested[case.references] = refuted, case.answers
    return replace(check, suspicion=suspicion, flagged=flagged, suggested=suggested)
