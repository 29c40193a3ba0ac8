"""The summary of `verify`: its outcome in rounded figures, and the note."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from decant.labeltrust.note import note
from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import parse_threshold, zero_failure_bound
from decant.summaries import Reliability, VerifySummary


def summary_of(
    outcome: VerifyOutcome, settings: VerifySettings, *, decisions: Path, outdated: int, nothing_planted: bool
) -> VerifySummary:
    """The outcome in rounded figures. The keywords are for the note (`decant.labeltrust.note`)."""
    actions = outcome.verdicts["action"].value_counts()
    rows, dropped = len(outcome.verdicts), int(actions.get("drop", 0))
    interval = outcome.label_noise_interval
    confirmed = lowest_confirmed_rate(settings.threshold, outcome.reviews)
    return VerifySummary(
        method=settings.method,
        rows_in=rows,
        rows_out=rows - dropped,
        dropped=dropped,
        relabelled=int(actions.get("relabel", 0)),
        reviews=len(outcome.reviews),
        queued=len(outcome.queue),
        label_noise_rate=_rounded(outcome.label_noise_rate),
        label_noise_interval=interval and (round(interval[0], 4), round(interval[1], 4)),
        reliability=_rounded_reliability(outcome.reliability),
        threshold=_rounded(outcome.threshold),
        operating_points=tuple(
            replace(point, trust=round(point.trust, 6), far=round(point.far, 6), frr=round(point.frr, 6))
            for point in outcome.operating_points
        ),
        lowest_confirmed_rate=_rounded(confirmed),
        classifier_weight=outcome.classifier_weight,
        note=note(
            outcome,
            settings,
            decisions=decisions,
            lowest_confirmed_rate=confirmed,
            outdated=outdated,
            nothing_planted=nothing_planted,
        ),
    )


def lowest_confirmed_rate(threshold: float | str, reviews: pd.DataFrame) -> float | None:
    """The lowest error rate that the rows of the first draw could confirm; None where the threshold is no target rate.

    threshold: `verify.threshold`. reviews: as in `VerifyOutcome`.
    """
    kind, _ = parse_threshold(threshold)
    if kind == "trust":
        return None
    drawn = reviews[reviews["round"] == 0]
    right = drawn["given"] == drawn["answer"]
    wrong = ~right & (drawn["answer"] != "unclear")
    return zero_failure_bound(int(wrong.sum() if kind == "far" else right.sum()))


def _rounded_reliability(found: dict[str, float] | None) -> Reliability | None:
    if found is None:
        return None
    return Reliability(rows=int(found["rows"]), brier=round(found["brier"], 4), ece=round(found["ece"], 4))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
