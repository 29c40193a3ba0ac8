"""cleanlab's Datalab on features: label issues without training anything of its own.

`Datalab(data, label_name).find_issues(features=...)` predicts every row from its nearest neighbours by the features
given (k = 10, the row itself left out) and runs confident learning on these predictions.

    suspicion(x, l) = 1 - label_score,  Datalab's own

The library itself (Apache-2.0 from 2.9 on; it needs `datasets`). The features are the plain classifier's by default;
`space: pixels` takes the pixels.

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
    peer("datasets", needed_by="datalab")
    library = peer("cleanlab", needed_by="datalab")
    labels = case.known.labels.astype(int)
    features = case.features if settings.space == "features" else case.pixels
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a report
        lab = library.Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(features=features, issue_types={"label": {"k": settings.k}})
        issues = lab.get_issues("label")
    flagged = issues["is_label_issue"].to_numpy(bool)
    return CheckResult(
        suspicion=1 - issues["label_score"].to_numpy(),
        flagged=flagged,
        suggested=issues["predicted_label"].to_numpy(int) if "predicted_label" in issues else _none(len(labels)),
        note=f"Datalab of cleanlab {library.__version__} flags {flagged.sum()} rows by {settings.space}",
    )


def _none(rows: int) -> np.ndarray:
    return np.full(rows, NO_SUGGESTION)
