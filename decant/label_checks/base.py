"""What a label check is given and what it says; `judge` runs one by its name."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log_softmax
from torch import nn

from decant.data.images import Images
from decant.errors import StageError
from decant.models.features import logits_and_features
from decant.models.settings import TrainSettings
from decant.models.training import train_classifier
from decant.registry import Family
from decant.settings import load

FAMILY = Family("decant.label_checks", ("judge",))


NO_SUGGESTION = -1


class TooFewReferences(StageError):
    """A check needs more references than the expert has confirmed."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """A label check's judgement of every row."""

    suspicion: np.ndarray
    """(n,) float32: the higher, the more likely the label is wrong. Comparable within one check only."""
    flagged: np.ndarray
    """(n,) bool: what the check would take out by its own rule."""
    suggested: np.ndarray
    """(n,) int64: the class that it takes the row for, or NO_SUGGESTION; may be the given one."""
    note: str
    """For people: what was found and by which rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckCase:
    """What a check is given. It never sees the truth."""

    images: Images
    """The rows as given."""
    references: np.ndarray  # (m,) row numbers
    answers: np.ndarray  # (m,) their right labels
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
    def others(self) -> np.ndarray:
        """(n,) bool: the rows that are no references."""
        mask = np.ones(len(self.images), bool)
        mask[self.references] = False
        return mask

    @cached_property
    def model(self) -> nn.Module:
        """The plain classifier: trained on `known` as it is."""
        return train_classifier(self.known, self.train, seed=self.seed)

    @cached_property
    def _inside(self) -> tuple[np.ndarray, np.ndarray]:
        return logits_and_features(self.model, self.images.pixels)

    @property
    def logits(self) -> np.ndarray:
        """(n, classes) of the plain classifier."""
        return self._inside[0]

    @property
    def features(self) -> np.ndarray:
        """(n, d) inputs of the plain classifier's last layer."""
        return self._inside[1]

    @property
    def pixels(self) -> np.ndarray:
        """(n, h * w * c) float32 in [0, 1]."""
        return self.images.pixels.reshape(len(self.images), -1).astype(np.float32) / 255


def names() -> list[str]:
    return FAMILY.names()


def judge(name: str, case: CheckCase, **settings: Any) -> CheckResult:
    """What the check `name` makes of every row; a reference is flagged if and only if its given label is wrong.

    Raises: SettingsError for an unknown name or parameter; StageError where a library of the extra `peers` is missing,
    or where it needs references and gets too few.
    """
    module = FAMILY.member(name, "label check")
    return _with_answers(module.judge(case, load(module.Settings, settings, name)), case)


def require_references(case: CheckCase, name: str) -> None:
    """Raises: TooFewReferences where there are fewer than two references of each of two classes."""
    counts = np.bincount(case.answers, minlength=case.images.classes)
    if (counts >= 2).sum() < 2:
        raise TooFewReferences(
            f"{name}: two references of each of two classes at least expected, {counts.tolist()} found"
        )


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) -log softmax(logits) at the labels, in nats."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def _with_answers(check: CheckResult, case: CheckCase) -> CheckResult:
    """References: the most suspicious rows of all where the expert refuted the label, else the least."""
    suspicion, flagged = check.suspicion.astype(np.float32), check.flagged.copy()
    suggested = check.suggested.astype(np.int64)
    assert np.isfinite(suspicion).all() and suspicion.shape == flagged.shape == suggested.shape == (len(case.images),)
    refuted = case.images.labels[case.references] != case.answers
    suspicion[case.references] = np.where(refuted, suspicion.max(), suspicion.min())
    flagged[case.references], suggested[case.references] = refuted, case.answers
    return replace(check, suspicion=suspicion, flagged=flagged, suggested=suggested)
