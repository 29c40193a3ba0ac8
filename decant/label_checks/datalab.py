"""Datalab of cleanlab: confident learning on the predictions of nearest neighbours, without further training.

`Datalab(data, label_name).find_issues(features=...)` predicts every row from its k nearest neighbours in feature space,
the row itself left out, and compares these predictions with the labels as `confident_learning` does.

    suspicion(x, l) = 1 - label_score,  Datalab's own

The library itself (Apache-2.0 from 2.9 on; it needs `datasets`), unchanged. The features are the plain classifier's by
default; `space: pixels` takes the pixels.

Cost: the plain classifier, and the neighbours of every row (scikit-learn, exact): a minute or so for 60,000.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np

from decant.label_checks.base import NO_SUGGESTION, CheckCase, CheckResult
from decant.registry import peer
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    space: Literal["features", "pixels"] = "features"
    k: Positive = 10
    """Neighbours, as Datalab's default."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag Datalab's label issues."""
    peer("datasets", needed_by="datalab")
    library = peer("cleanlab", needed_by="datalab")
    labels = case.known.labels.astype(int)
    features = case.features if settings.space == "features" else case.pixels
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a report
        lab = library.Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(features=features, issue_types={"label": {"k": settings.k}})
        issues = lab.get_issues("label")
    flagged = issues["is_label_issue"].to_numpy(bool)
    suggested = np.full(len(labels), NO_SUGGESTION)
    if "predicted_label" in issues:
        suggested = issues["predicted_label"].to_numpy(int)
    return CheckResult(
        suspicion=1 - issues["label_score"].to_numpy(),
        flagged=flagged,
        suggested=suggested,
        note=f"Datalab of cleanlab {library.__version__} flags {flagged.sum()} rows by {settings.space}",
    )
