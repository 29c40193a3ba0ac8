"""The interface of a detector: the case that it judges, and the detection that it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from decant.data.images import Images
from decant.detectors.settings import DetectSettings
from decant.influence import ekfac, factor_cache
from decant.influence.functions import Influence, influence
from decant.models.features import logits_and_features
from decant.models.training import labels_to_device, to_device
from decant.registry import DETECTORS


def names() -> list[str]:
    """Every detector's name."""
    return DETECTORS.names()


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detector's verdict on each of n training rows."""

    scores: Float[np.ndarray, " n"]
    """Higher is more suspicious; `measure` says what they are."""
    flagged: Bool[np.ndarray, " n"]
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
    def nothing(cls, scores: Float[np.ndarray, " n"], note: str, measure: str) -> Self:
        """A detection that flags no row."""
        flagged = np.zeros(len(scores), bool)
        return cls(scores=scores.astype(np.float32), flagged=flagged, note=note, measure=measure, false_alarms=0.0)


@dataclass(frozen=True, kw_only=True)
class DetectionCase:
    """What a detector is given beside the affected points: a model and its n training rows. It never sees the truth.

    All affected points that its methods are given share a predicted label.
    """

    model: nn.Module
    train: Images
    settings: DetectSettings
    seed: int
    on_rows: Callable[[int], None]
    """Is called with the number of training rows that were just passed through the model."""
    fitted: Mapping[str, ekfac.Factors] | None = None
    """The model's curvature, where the caller has it already."""
    cache: Path | None = None
    """A folder in which the curvature is kept and found again."""

    @cached_property
    def rows(self) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Training inputs on the device, and labels."""
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

    def influence_on(self, queries: tuple[Tensor, Int[Tensor, " q"]], *, self_influence: bool) -> Influence:
        """Influence of every training row on every query: (inputs (q, c, h, w), labels)."""
        return influence(
            self.model,
            self.rows,
            queries,
            factors=self.factors,
            damping=self.settings.damping,
            self_influence=self_influence,
            on_rows=self.on_rows,
        )

    def cosines(self, images: Images) -> Float[np.ndarray, "q n"]:
        """Self-normalised influence of every training row on each image's own label, in [-1, 1]."""
        queries = to_device(images.pixels), labels_to_device(images.labels)
        return self.influence_on(queries, self_influence=True).cosine().cpu().numpy()

    @cached_property
    def features(self) -> Float[np.ndarray, "n d"]:
        """Inputs of the model's last layer at the training rows."""
        return self.features_of(self.train)

    def features_of(self, images: Images) -> Float[np.ndarray, "m d"]:
        """Inputs of the model's last layer at the images."""
        return logits_and_features(self.model, images.pixels)[1]

    def candidates(self, label: int) -> Bool[np.ndarray, " n"]:
        """The rows that may be flagged for points predicted as `label`."""
        own = self.train.labels == label
        return own if self.settings.same_label else np.ones_like(own)

    def false_alarms(self, passing: Bool[np.ndarray, " n"], label: int) -> float:
        """Innocent rows to expect among the candidates that pass a rule.

        Estimate: the share of the rows with other labels that passes it, since these are not the cause.
        """
        others = self.train.labels != label
        return float(passing[others].mean() * self.candidates(label).sum()) if others.any() else 0.0

    def flagging(
        self,
        passing: Bool[np.ndarray, " n"],
        points: Images,
        *,
        scores: Float[np.ndarray, " n"],
        said: str,
        measure: str,
    ) -> Detection:
        """A detection that flags the candidates that pass a rule. Its note is their number and `said`."""
        label = int(points.labels[0])
        flagged = passing & self.candidates(label)
        return Detection(
            scores=scores.astype(np.float32),
            flagged=flagged,
            note=f"{flagged.sum()} rows {said}",
            measure=measure,
            false_alarms=self.false_alarms(passing, label),
        )

    def class_of(self, points: Images) -> str:
        """Name of the class that the points are predicted as."""
        return self.train.info.class_names[int(points.labels[0])]

    def count_of(self, points: Images) -> str:
        """The points in words, for notes: `5 affected points predicted cat`."""
        count = "one affected point" if len(points) == 1 else f"{len(points)} affected points"
        return f"{count} predicted {self.class_of(points)}"
