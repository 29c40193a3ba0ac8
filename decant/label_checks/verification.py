"""Label verification by any label check: what the stage `verify` does where `verify.method` is not LabelTrust.

The expert is shown the same first rows as in LabelTrust: random rows of every given label until `verify.references` of
them are confirmed. The check then judges every row, with the answers as its references, and the expert's answers
overrule it on the rows that they saw. There are no rounds of review: these choose rows by LabelTrust's networks.

Suspicion is scaled to 0-1 over the rows (it is not a probability): 0 for the least suspicious row, 1 for the most. A
check gives no probability for its suggestion either, so with `verify.action: relabel` only the expert's answers relabel
a row; the others that are flagged are dropped.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from decant.data.images import Images
from decant.label_checks.base import CheckCase, CheckResult, TooFewReferences, judge
from decant.labeltrust import verify as labeltrust
from decant.labeltrust.experts import Expert
from decant.labeltrust.outcome import VerifyOutcome, first_draw, outcome_of
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verdicts import NO_CLASS, Findings
from decant.models.settings import TrainSettings
from decant.streams import child


def steps_of(settings: VerifySettings, images: Images) -> int:
    """Steps of one `verify`, for a progress bar's total; a check other than LabelTrust is one."""
    return labeltrust.steps_of(settings, images) if settings.method == "labeltrust" else 1


def verify(
    images: Images,
    expert: Expert,
    settings: VerifySettings,
    *,
    seed: int,
    embeddings: Float[np.ndarray, "n e"] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> VerifyOutcome:
    """A verdict on every row's label by `settings.method`; embeddings are LabelTrust's alone.

    Where the check has too few references, every row is kept.

    Raises: StageError where the method needs a library of the extra `peers` that is not installed.
    """
    if settings.method == "labeltrust":
        return labeltrust.verify(images, expert, settings, seed=seed, embeddings=embeddings, on_step=on_step)
    reviews = first_draw(images, expert, settings, seed=seed)
    check = _judged(reviews, settings.method, child(seed, "verify", settings.method))
    on_step()
    if check is None:
        return outcome_of(reviews, None, settings)
    return replace(outcome_of(reviews, _findings(check, images, settings.method), settings), rule=check.note)


def _judged(reviews: Reviews, method: str, seed: int) -> CheckResult | None:
    """What the check says; None where it needs more references than were answered so far."""
    rows = reviews.references
    case = CheckCase(
        images=reviews.images, references=rows, answers=reviews.answers[rows], train=TrainSettings(), seed=seed
    )
    try:
        return judge(method, case)
    except TooFewReferences:
        return None


def _findings(check: CheckResult, images: Images, method: str) -> Findings:
    names = np.array(images.info.class_names, object)
    low, high = check.suspicion.min(), check.suspicion.max()
    suspicion = (check.suspicion - low) / max(high - low, np.finfo(np.float32).tiny)
    other = check.flagged & (check.suggested >= 0) & (check.suggested != images.labels)
    reasons = np.where(check.flagged, f"flagged by {method}", f"not flagged by {method}").astype(object)
    looks_like = "looks like a " + names[check.suggested[other]] + ", not a " + names[images.labels[other]]
    reasons[other] = looks_like + f" (flagged by {method})"
    return Findings(
        suspicion=suspicion,
        flagged=check.flagged,
        suggested=np.where(other, check.suggested, NO_CLASS),
        certainty=np.full(len(images), np.nan),
        reasons=reasons,
    )
