"""What a detector is given and what it says; `detect` runs one over the affected points."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from decant.data.images import Images
from decant.detectors.settings import DetectSettings
from decant.influence import ekfac, factor_cache
from decant.influence.functions import Influence, influence
from decant.models.features import logits_and_features
from decant.models.training import predict, to_device
from decant.registry import Family

FAMILY = Family("decant.detectors", ("judge",))


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detector's judgement of every training row."""

    scores: np.ndarray  # (n,) float32
    flagged: np.ndarray  # (n,) bool
    note: str
    """For people: what was found, or why nothing was."""
    measure: str
    """What a score is, with its range."""
    false_alarms: float | None = None
    """How many of the flagged rows are expected to be innocent, where the detector can tell without the truth."""
    points: int = 0
    """Affected points that were used."""
    left_out: int = 0
    """Affected points that were not: the model does not predict the label that was reported."""

    @classmethod
    def nothing(cls, scores: np.ndarray, note: str, measure: str) -> Self:
        """No row is flagged."""
        flagged = np.zeros(len(scores), bool)
        return cls(scores=scores.astype(np.float32), flagged=flagged, note=note, measure=measure, false_alarms=0.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a detector is given besides the affected points. It never sees the truth."""

    model: nn.Module
    train: Images
    settings: DetectSettings
    seed: int
    on_rows: Callable[[int], None]
    """Is told of every training row that was passed through the model."""
    fitted: Mapping[str, ekfac.Factors] | None = None
    """The model's curvature, where the caller has it already."""
    cache: Path | None = None
    """A folder in which the curvature is kept and found again."""

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Training inputs (n, c, h, w) uint8 on the device, and labels (n,) int64."""
        return to_device(self.train.pixels), torch.from_numpy(self.train.labels.astype(np.int64))

    @cached_property
    def factors(self) -> Mapping[str, ekfac.Factors]:
        """The model's curvature over the training rows: true Fisher, fitted once for all points."""
        if self.fitted is not None:
            return self.fitted
        if self.cache is not None:
            return factor_cache.cached(self.cache, self.model, self.rows, seed=self.seed, on_rows=self.on_rows)
        losses = ekfac.sampled_cross_entropy(len(self.train), seed=self.seed)
        return ekfac.fit(self.model, self.rows[0], losses, on_rows=self.on_rows)

    def influence_on(self, queries: tuple[Tensor, Tensor], *, self_influence: bool) -> Influence:
        """Of every training row on every query: (inputs (q, c, h, w), labels (q,) int64)."""
        return influence(
            self.model,
            self.rows,
            queries,
            factors=self.factors,
            damping=self.settings.damping,
            self_influence=self_influence,
            on_rows=self.on_rows,
        )

    @cached_property
    def features(self) -> np.ndarray:
        """(n, d) float32: inputs of the model's last layer at the training rows."""
        return logits_and_features(self.model, self.train.pixels)[1]

    def candidates(self, label: int) -> np.ndarray:
        """(n,) bool: the rows that may be flagged for points predicted as `label`."""
        own = self.train.labels == label
        return own if self.settings.same_label else np.ones_like(own)

    def false_alarms(self, passing: np.ndarray, label: int) -> float:
        """Innocent rows to expect among the candidates that pass a rule, (n,) bool.

        As large a share as passes it among the rows with other labels, which are not the cause.
        """
        others = self.train.labels != label
        return float(passing[others].mean() * self.candidates(label).sum()) if others.any() else 0.0

    def flagging(
        self, passing: np.ndarray, points: Images, *, scores: np.ndarray, said: str, measure: str
    ) -> Detection:
        """Flags the candidates that pass a rule, (n,) bool. `said`: the note, which their number begins."""
        label = int(points.labels[0])
        flagged = passing & self.candidates(label)
        return Detection(
            scores=scores.astype(np.float32),
            flagged=flagged,
            note=f"{flagged.sum()} rows {said}",
            measure=measure,
            false_alarms=self.false_alarms(passing, label),
        )

    def name_of(self, points: Images) -> str:
        """Of the class that the points are predicted as."""
        return self.train.info.class_names[int(points.labels[0])]

    def said_of(self, points: Images) -> str:
        """For notes: `5 affected points predicted cat`."""
        count = "one affected point" if len(points) == 1 else f"{len(points)} affected points"
        return f"{count} predicted {self.name_of(points)}"


def names() -> list[str]:
    return FAMILY.names()


def passes(affected: Images) -> int:
    """How often `detect` will go through the training rows, a second look of `joint` left out (for a progress bar)."""
    labels = len(np.unique(affected.labels))
    return 2 + labels if labels else 0


def detect(
    model: nn.Module,
    train: Images,
    affected: Images,
    settings: DetectSettings,
    *,
    seed: int,
    on_rows: Callable[[int], None] = lambda rows: None,
    fitted: Mapping[str, ekfac.Factors] | None = None,
    cache: Path | None = None,
) -> Detection:
    """The training rows that cause the affected points, as `settings.detector` sees them.

    affected: images with the wrong label that was predicted; those that the model does not predict so are left out.
    fitted: the model's curvature on these rows, if it is known already: spares two passes. cache: a folder in which it
    is kept and found again (`decant.influence.factor_cache`).
    Raises: StageError when the model has a layer through which influence can't be traced.
    """
    shown = predict(model, affected.pixels).argmax(1) == affected.labels if len(affected) else np.zeros(0, bool)
    points = affected.select(shown)
    case = Case(model=model, train=train, settings=settings, seed=seed, on_rows=on_rows, fitted=fitted, cache=cache)
    judge = FAMILY.member(settings.detector, "detect.detector").judge
    causes = np.unique(points.labels if len(train) else [])
    parts = [judge(case, points.select(points.labels == label)) for label in causes]
    missing = len(affected) - len(points)
    remark = f"; {missing} affected points left out: the model does not predict what was reported" if missing else ""
    if not parts:
        why = "no affected point given" if not len(affected) else "no affected point to trace"
        none = Detection.nothing(np.zeros(len(train)), why + remark, "not traced")
        return replace(none, false_alarms=None, left_out=missing)
    return replace(
        parts[0],
        scores=np.max([part.scores for part in parts], axis=0),
        flagged=np.any([part.flagged for part in parts], axis=0),
        note=_summary(parts, [train.info.class_names[label] for label in np.unique(points.labels)]) + remark,
        false_alarms=_total([part.false_alarms for part in parts]),
        points=len(points),
        left_out=missing,
    )


def _summary(parts: list[Detection], predicted: list[str]) -> str:
    """One note for the points of all labels; those for which nothing was found are counted up, not told one by one."""
    if len(parts) == 1:
        return parts[0].note
    silent = [name for name, part in zip(predicted, parts, strict=True) if not part.flagged.any()]
    notes = [part.note for part in parts if part.flagged.any()]
    return "; ".join(notes + [f"nothing found for the points predicted {', '.join(silent)}"] * bool(silent))


def _total(counts: list[float | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
