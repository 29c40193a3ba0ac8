"""Confident learning (Northcutt, Jiang, Chuang, JAIR 2021), as cleanlab does it.

Every row is predicted by a classifier that did not train on it, and `cleanlab.filter.find_label_issues` compares these
out-of-fold predictions with the labels. The confident joint C_ij counts the rows with label i whose probability of
class j is above the mean over the rows with label j. For each pair i != j as many rows as C_ij are flagged, those of
the lowest margin.

    suspicion(x, l) = 1 - p(l | x), out of fold  (cleanlab's label quality `self_confidence`)

The library itself (Apache-2.0 from 2.9 on), with its default rule `prune_by_noise_rate`; nothing is changed. The
classifier is that of all checks; folds are stratified by label.

Cost: `folds` trainings on (folds - 1) / folds of the rows.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from decant.label_checks.base import CheckCase, CheckResult
from decant.models.cross_validation import out_of_fold
from decant.registry import peer
from decant.settings import Block


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    filter_by: Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"] = (
        "prune_by_noise_rate"
    )
    """cleanlab's rule by which rows are flagged."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag cleanlab's label issues, by out-of-fold predictions."""
    library = peer("cleanlab", needed_by="confident_learning")
    finder = peer("cleanlab.filter", needed_by="confident_learning")
    probabilities = out_of_fold(case.known, case.train, folds=settings.folds, seed=case.seed)
    labels = case.known.labels.astype(int)
    columns, renamed = np.unique(labels, return_inverse=True)  # cleanlab wants classes 0 to K - 1, each with rows
    present = probabilities[:, columns] / probabilities[:, columns].sum(1, keepdims=True)
    flagged = finder.find_label_issues(renamed, present, filter_by=settings.filter_by, n_jobs=1)
    quality = library.rank.get_label_quality_scores(renamed, present, method="self_confidence")
    return CheckResult(
        suspicion=1 - quality,
        flagged=np.asarray(flagged, bool),
        suggested=columns[present.argmax(1)],
        note=f"cleanlab {library.__version__} flags {flagged.sum()} rows by {settings.filter_by}",
    )
