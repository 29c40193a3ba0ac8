"""Detectors: from a few affected points to the training rows that cause them. One file each, found by its name.

An *affected point* is an image together with the wrong label that a user saw the model predict for it. Points that
share a predicted label are taken to have one cause and are judged together, as one `Case`. A detector's file has

    judge(case, points) -> Detection

and adding a detector is adding such a file. Scores have one direction: higher is more suspicious.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from decant import ekfac
from decant.images import Images
from decant.influence import Influence, influence
from decant.settings import DetectSettings
from decant.training import predict, to_device


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


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a detector is given besides the affected points. It never sees the truth."""

    model: nn.Module
    train: Images
    settings: DetectSettings
    seed: int
    on_rows: Callable[[int], None]
    """Is told of every training row that was passed through the model."""

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Training inputs (n, c, h, w) uint8 on the device, and labels (n,) int64."""
        return to_device(self.train.pixels), torch.from_numpy(self.train.labels.astype(np.int64))

    @cached_property
    def factors(self) -> dict[str, ekfac.Factors]:
        """The model's curvature over the training rows: true Fisher, fitted once for all points."""
        losses = ekfac.sampled_cross_entropy(len(self.train), torch.Generator().manual_seed(self.seed))
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

    def candidates(self, label: int) -> np.ndarray:
        """(n,) bool: the rows that may be flagged for points predicted as `label`."""
        own = self.train.labels == label
        return own if self.settings.same_label else np.ones_like(own)


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def passes(affected: Images) -> int:
    """How often `detect` will go through the training rows, at most (for a progress bar's total)."""
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
) -> Detection:
    """The training rows that cause the affected points, as `settings.detector` sees them.

    affected: images with the wrong label that was predicted; those that the model does not predict so are left out.
    Raises: StageError when the model has a layer through which influence can't be traced.
    """
    shown = predict(model, affected.pixels).argmax(1) == affected.labels if len(affected) else np.zeros(0, bool)
    points = affected.select(shown)
    case = Case(model=model, train=train, settings=settings, seed=seed, on_rows=on_rows)
    judge = importlib.import_module(f"decant.detectors.{settings.detector}").judge
    parts = [judge(case, points.select(points.labels == label)) for label in np.unique(points.labels)]
    missing = len(affected) - len(points)
    remark = f"; {missing} affected points left out: the model does not predict what was reported" if missing else ""
    if not parts or not len(train):
        why = "no affected point given" if not len(affected) else "no affected point to trace"
        return _nothing(len(train), why + remark, left_out=missing)
    return replace(
        parts[0],
        scores=np.max([part.scores for part in parts], axis=0),
        flagged=np.any([part.flagged for part in parts], axis=0),
        note=_summary(parts, [train.info.class_names[label] for label in np.unique(points.labels)]) + remark,
        false_alarms=_total([part.false_alarms for part in parts]),
        points=len(points),
        left_out=missing,
    )


def _nothing(rows: int, note: str, *, left_out: int) -> Detection:
    return Detection(
        scores=np.zeros(rows, np.float32),
        flagged=np.zeros(rows, bool),
        note=note,
        measure="not traced",
        left_out=left_out,
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
