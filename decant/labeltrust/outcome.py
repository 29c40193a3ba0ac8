"""The outcome of `verify`, by LabelTrust or by another label check: verdicts, answers, open questions and label noise.

Every method starts with the same draw of references, and the label noise that these show is measured in one way.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from decant.data.images import Images
from decant.labeltrust.experts import Expert
from decant.labeltrust.judgement import Judgement
from decant.labeltrust.open_questions import queue_of
from decant.labeltrust.review_rounds import Reviews, draw_references
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import OperatingPoint, stratified_noise_rate
from decant.labeltrust.verdicts import Findings, nothing_found, verdicts
from decant.streams import stream


@dataclass(frozen=True, kw_only=True)
class VerifyOutcome:
    """What label verification found; fields that the method or the mode doesn't know are None or empty."""

    verdicts: pd.DataFrame
    reviews: pd.DataFrame
    queue: pd.DataFrame
    """Rows that wait for the expert's answer, with what helps to answer (`decant.labeltrust.open_questions`)."""
    label_noise_rate: float | None = None
    """Estimated share of wrong labels in the data as given; None when nothing was judged."""
    label_noise_interval: tuple[float, float] | None = None
    """95 % confidence interval of that share from the rows drawn at random alone; None where none is answered."""
    threshold: float | None = None
    """The trust from which on rows were accepted."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """The operating point of this threshold, the first, and of others."""
    scorer: TrustScorer | None = None
    """Judges other pictures as these were judged."""
    reliability: dict[str, float] | None = None
    """Of rows that a round drew at random: their number, and `brier` and `ece` of their trust before they were
    answered."""
    classifier_weight: float | None = None
    """Weight of the classifier's out-of-fold predictions beside the pairs' scores (`verify.classifier`). 0 where it
    repeats labels that the expert refuted, or adds nothing; None where there is no classifier."""
    rule: str | None = None
    """The rule by which a label check flagged rows (`verify.method`); None for LabelTrust, which has its threshold."""
    stopped: str | None = None
    """Why the remaining rounds were left out; None where none was."""


def first_draw(
    images: Images,
    expert: Expert,
    settings: VerifySettings,
    *,
    seed: int,
    withheld: Bool[np.ndarray, " n"] | None = None,
) -> Reviews:
    """The expert's answers about random rows of every label, and whatever they answered before.

    withheld: rows that the expert is never shown.
    """
    reviews = Reviews(images, withheld)
    draw = stream(seed, "verify", "references")
    draw_references(reviews, expert, settings.references, draw, settings.budget)
    return reviews


def outcome_of(
    reviews: Reviews, findings: Findings | None, settings: VerifySettings, judgement: Judgement | None = None
) -> VerifyOutcome:
    """What every method can tell; the label-noise rate is counted, and what only one method knows is left out.

    findings: None where there are too few references to judge anything; every row is then kept. judgement: explains the
    open questions (`decant.labeltrust.open_questions`).
    """
    images = reviews.images
    too_few = nothing_found(len(images), "not judged: too few references so far")
    table = verdicts(reviews, too_few if findings is None else findings, settings)
    drawn = stratified_noise_rate(reviews.first_draw_counts(), np.bincount(images.labels, minlength=images.classes))
    # Without an answer about the rows drawn at random, the share that is flagged has to do.
    rate, interval = (float(table["flagged"].mean()), None) if drawn is None else drawn
    return VerifyOutcome(
        verdicts=table,
        reviews=reviews.table(reviews.reviewed),
        queue=queue_of(reviews, judgement),
        label_noise_rate=None if findings is None else rate,
        label_noise_interval=interval,
    )


def switched_off(images: Images) -> VerifyOutcome:
    """The outcome without verification (`verify.enabled: false`): every row is kept, and nobody is asked."""
    reviews = Reviews(images)
    nobody = reviews.table(reviews.reviewed)
    table = verdicts(reviews, nothing_found(len(images), "switched off"), VerifySettings())
    return VerifyOutcome(verdicts=table, reviews=nobody, queue=nobody)
