"""Running a detector over affected points: those of one predicted label by themselves, then merged."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase
from decant.detectors.merge import merged
from decant.detectors.settings import DetectSettings
from decant.influence.ekfac import Factors
from decant.models.training import predict
from decant.registry import DETECTORS


def passes(affected: Images) -> int:
    """Number of times that `detect` goes through the training rows, without a second look of `joint`: for progress."""
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
    fitted: Mapping[str, Factors] | None = None,
    cache: Path | None = None,
) -> Detection:
    """The training rows that cause the affected points, by the detector `settings.detector`.

    affected: images with the wrong label that was predicted; those that the model does not predict so are left out.
    fitted: the model's curvature on these rows, if it is known already: spares two passes. cache: a folder in which it
    is kept and found again (`decant.influence.factor_cache`).
    Raises: StageError when the model has a layer through which influence can't be traced.
    """
    reproduced = predict(model, affected.pixels).argmax(1) == affected.labels if len(affected) else np.zeros(0, bool)
    points = affected.select(reproduced)
    left_out = len(affected) - len(points)
    remark = f"; {left_out} affected points left out: the model does not predict what was reported" if left_out else ""
    if not len(points) or not len(train):
        why = "no affected point to trace" if len(affected) else "no affected point given"
        nothing = Detection.nothing(np.zeros(len(train)), why + remark, "not traced")
        return replace(nothing, false_alarms=None, left_out=left_out)
    judge = DETECTORS.member(settings.detector, "detect.detector").judge
    case = DetectionCase(
        model=model, train=train, settings=settings, seed=seed, on_rows=on_rows, fitted=fitted, cache=cache
    )
    found = merged(
        {
            train.info.class_names[label]: judge(case, points.select(points.labels == label))
            for label in np.unique(points.labels)
        }
    )
    return replace(found, note=found.note + remark, points=len(points), left_out=left_out)


def verdicts_of(rows: Images, found: Detection) -> pd.DataFrame:
    """One verdict per row; its score is what `found.measure` says, and the flagged rows are dropped."""
    reasons = np.where(found.flagged, "among the rows that cause the affected points", "not among the rows that do")
    return pd.DataFrame(
        {
            "id": rows.ids,
            "stage": "detect",
            "score": found.scores,
            "flagged": found.flagged,
            "action": np.where(found.flagged, "drop", "keep"),
            "reason": reasons if found.points else "no affected point to trace",
        }
    )
