"""Spectral signatures (Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018).

A backdoor leaves a strong common direction in the features of its target class. The rows that lie far out along the
first singular vector of the class's centred features are suspicious.

    suspicion(x, l) = <f(x) - mean_l, v_l>^2 / mean over class l of the same,    v_l: first right singular vector

The paper removes 1.5 e n_l rows of each class, where e (`share`) is a bound on the share of poisoned rows that must be
known. So does this check.
Own code, a dozen lines: ART's SpectralSignatureDefense asks its wrapper for "layers", which only sees the children of a
plain nn.Sequential, and gives no scores of all rows across classes. Changed: scores are divided by the class's mean, so
that classes can be ranked together. Meant for backdoors; wrong labels of all kinds leave no common direction.

Cost: the plain classifier, and one small eigendecomposition per class.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from decant.label_checks.base import NO_SUGGESTION, CheckCase, CheckResult
from decant.models.features import spectral_signature
from decant.settings import Block, Fraction


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.1
    """Expected share of poisoned rows (e in the paper)."""
    multiplier: Annotated[float, Field(ge=1, le=10)] = 1.5
    """Rows removed per expected poisoned row."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag the rows of each class that are furthest out along its first singular vector."""
    labels = case.known.labels
    suspicion, flagged = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        scores = spectral_signature(case.features[rows])(case.features[rows])
        suspicion[rows] = scores / max(float(scores.mean()), 1e-12)
        taken = round(min(1.0, settings.multiplier * settings.share) * len(rows))
        flagged[rows[np.argsort(-scores, kind="stable")[:taken]]] = True
    return CheckResult(
        suspicion=suspicion,
        flagged=flagged,
        suggested=np.full(len(labels), NO_SUGGESTION),
        note=f"of every class the {settings.multiplier * settings.share:.0%} furthest out along its first direction",
    )
