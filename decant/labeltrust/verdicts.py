"""Verdicts on every row's label: what a method found, overruled by the expert where they saw the row.

| the expert | verdict |
|---|---|
| saw the given label | kept, suspicion 0 |
| saw another class | dropped or relabelled to it, suspicion 1 |
| could not tell | dropped, suspicion 0.5 |
| was not asked | as the method says: kept, dropped, or relabelled where its suggestion is sure enough |
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from decant.labeltrust.decisions import UNCLEAR
from decant.labeltrust.judgement import Judgement
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import threshold_for

NO_CLASS = -1


@dataclass(frozen=True)
class Findings:
    """What a method makes of every row's label, before the expert's answers count."""

    suspicion: Float[np.ndarray, " n"]
    """0 to 1, higher: the label is more likely wrong; LabelTrust's is 1 - trust."""
    flagged: Bool[np.ndarray, " n"]
    """Rows that the method would not keep."""
    suggested: Int[np.ndarray, " n"]
    """The class that a flagged row looks like, or NO_CLASS."""
    certainty: Float[np.ndarray, " n"]
    """Trust in the suggested class, 0 to 1; NaN where the method gives none, so that the row is not relabelled."""
    reasons: np.ndarray
    """(n,) object: one sentence about each row."""


def nothing_found(rows: int, reason: str) -> Findings:
    """Every label is taken to be right, for one reason."""
    zeros = np.zeros(rows)
    return Findings(zeros, np.zeros(rows, bool), np.full(rows, NO_CLASS), zeros, np.full(rows, reason, object))


def findings_of(judgement: Judgement, reviews: Reviews, threshold: float | str) -> tuple[Findings, float]:
    """(LabelTrust's findings, the trust from which on a row is kept). threshold: `verify.threshold`."""
    labels, names = reviews.images.labels, np.array(reviews.images.info.class_names, object)
    is_judged = np.isin(labels, judgement.judged)
    trust = np.where(is_judged, judgement.trust(labels), 1.0)
    suggested = judgement.suggestion(labels)
    certainty = judgement.belief[np.arange(len(labels)), suggested]
    lowest = threshold_for(trust[is_judged & ~reviews.reviewed], threshold)
    flagged = is_judged & (trust < lowest)
    reasons = _reasons(names[labels], names[suggested], trust, certainty, flagged)
    reasons[~is_judged] = [f"not judged: fewer than 2 references of {name}" for name in names[labels[~is_judged]]]
    return Findings(1 - trust, flagged, suggested, certainty, reasons), lowest


def verdicts(reviews: Reviews, findings: Findings, settings: VerifySettings) -> pd.DataFrame:
    """A verdict on every row: the findings, overruled by the expert's answers."""
    names, labels = np.array(reviews.images.info.class_names, object), reviews.images.labels
    confirmed, refuted, unclear = reviews.confirmed, reviews.refuted, reviews.answers == UNCLEAR
    suspicion = np.select([confirmed, refuted, unclear], [0.0, 1.0, 0.5], findings.suspicion)
    suggested = np.where(refuted, reviews.answers, findings.suggested)
    certainty = np.where(refuted, 1.0, findings.certainty)
    flagged = np.where(reviews.reviewed, refuted | unclear, findings.flagged)
    reasons = findings.reasons.copy()
    reasons[confirmed] = "the expert confirmed the label"
    reasons[refuted] = "the expert saw a " + names[reviews.answers[refuted]] + ", not a " + names[labels[refuted]]
    reasons[unclear] = "the expert could not tell what it shows"
    relabel = flagged & ~unclear & (certainty >= settings.relabel_above) & (settings.action == "relabel")
    without_class = ~flagged | unclear | (suggested == NO_CLASS)
    return pd.DataFrame(
        {
            "id": reviews.images.ids,
            "stage": "verify",
            "score": suspicion.astype(np.float32),
            "flagged": flagged,
            "action": np.select([relabel, flagged], ["relabel", "drop"], "keep"),
            "suggested_label": pd.Series(suggested, dtype="Int32").mask(without_class),
            "suggested_trust": np.where(without_class, np.nan, certainty).astype(np.float32),
            "reason": reasons,
        }
    )


def _reasons(
    given: np.ndarray, suggested: np.ndarray, trust: np.ndarray, certainty: np.ndarray, flagged: np.ndarray
) -> np.ndarray:
    """One sentence per row; given, suggested: (n,) class names."""
    rows = zip(given, suggested, trust, certainty, flagged, strict=True)
    return np.array(
        [
            f"looks like a {other} (trust {sure:.2f}), not a {name} (trust {value:.2f})"
            if is_flagged
            else f"trust of the given {name}: {value:.2f}"
            for name, other, value, sure, is_flagged in rows
        ],
        object,
    )
