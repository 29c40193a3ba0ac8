"""kNN label sanitisation (Paudice, Muñoz-González, Lupu, "Label Sanitization Against Label Flipping Poisoning Attacks",
ECML PKDD workshops 2018).

A row takes the label of its nearest neighbours if enough of them agree on one; so it is flagged if that label is not
the given one.

    share_c = share of the k nearest other rows that carry label c
    relabel to argmax_c share_c  if that share is at least eta;    suspicion(x, l) = 1 - share_l

Unchanged, on pixels as in the paper, which tries several values of k and eta; `space: features` takes neighbours by the
plain classifier's features, for pictures whose pixels say little. The references vote under their right labels. Among
rows with equal votes those whose agreeing neighbours are nearer are less suspicious.

Cost: all distances between rows: 60,000 of MNIST take about a minute on one CPU core.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from decant.label_checks.base import CheckCase, CheckResult
from decant.models.features import nearest
from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    k: Positive = 10
    eta: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of the neighbours that must agree before a row is relabelled."""
    space: Literal["pixels", "features"] = "pixels"
    near: Fraction = 0.05
    """Weight of nearness in the suspicion; below 1 / k it only breaks ties of votes."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag rows whose neighbours agree on another label."""
    rows = case.pixels if settings.space == "pixels" else case.features
    distances, neighbours = nearest(rows, rows, settings.k, itself=True)
    labels = case.known.labels[neighbours]  # (n, k)
    counts = np.stack([(labels == label).mean(1) for label in range(case.images.classes)], 1)
    given = case.images.labels
    suggested = counts.argmax(1)
    flagged = (suggested != given) & (counts.max(1) >= settings.eta)
    agree = labels == given[:, None]
    weights = 1 / (distances + 1e-6)
    nearness = (weights * agree).sum(1) / weights.sum(1)
    return CheckResult(
        suspicion=1 - agree.mean(1) - settings.near * nearness,
        flagged=flagged,
        suggested=suggested,
        note=f"{flagged.sum()} rows where at least {settings.eta:.0%} of {settings.k} neighbours share another label",
    )
