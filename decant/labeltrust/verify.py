"""LabelTrust: verify every row's label, with an expert who confirms the labels of a few rows.

"LabelTrust: Filtering Poisoned Data and Model Predictions via Confidence Scores", USENIX Security 2024. A Siamese
network learns from a few rows that an expert confirmed whether two pictures show the same class; a row's label is
trusted if the row looks like the references of that label. The expert is then shown more rows, and new networks learn
from all answers so far.

``paper``: score(x, l) = mean over references r of class l of sigmoid(L(x, r)); accepted iff score >= threshold.
``plus`` (default): class scores m_c from a network trained on episodes (`decant.labeltrust.siamese`); trust is the
probability that the given label is right under a label-noise model fitted without the truth
(`decant.labeltrust.label_noise`); and self-training on rows whose label agrees with the network, in two halves, so that
no row confirms its own label (`decant.labeltrust.self_training`).

The expert's answers overrule the method on the rows that they saw. A label-consistent backdoor row has the right label
and must pass.

Cost in training steps: `pretrain`, `steps` for the first network, and for self-training 2 x (`passes` + `rounds`) x
`steps` (up to three times as many with many rows); with `classifier` also five trainings of a classifier
(`decant.models.cross_validation`). 2,874 digits of 16 x 16 took 23 s on one CPU core. Expected there, with 8 % wrong
labels and after purification: precision .99, recall .95-.97; of 6,000 clean MNIST rows at most 6 are dropped.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from decant.data.images import Images
from decant.labeltrust.experts import Expert
from decant.labeltrust.judgement import Judgement
from decant.labeltrust.outcome import VerifyOutcome, first_draw, outcome_of
from decant.labeltrust.pretrain import pretrained
from decant.labeltrust.review_rounds import RANDOM, SHARES, Reviews, chosen_rows
from decant.labeltrust.schedule import Round, Schedule
from decant.labeltrust.self_training import TrainingRows, strategy_for
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import (
    OperatingPoint,
    expected_errors,
    operating_points,
    reliability,
)
from decant.labeltrust.verdicts import findings_of
from decant.models.cross_validation import out_of_fold, out_of_fold_steps
from decant.models.settings import TrainSettings
from decant.models.training import to_device
from decant.runtime import device
from decant.streams import child, stream

CLASSIFIER, FOLDS = TrainSettings(), 5  # of `verify.classifier`


def steps_of(settings: VerifySettings, images: Images) -> int:
    """Training steps of one `verify`, for a progress bar's total."""
    before = settings.pretrain
    if settings.classifier:
        before += out_of_fold_steps(images.labels, CLASSIFIER, FOLDS)
    return before + strategy_for(settings).steps(len(images), settings.rounds)


def verify(
    images: Images,
    expert: Expert,
    settings: VerifySettings,
    *,
    seed: int,
    embeddings: Float[np.ndarray, "n e"] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> VerifyOutcome:
    """A verdict on every row's label; the expert is asked for references first, and in each of the rounds.

    embeddings: float32 of `decant.models.embeddings`, to compare instead of the pixels.

    When the expert leaves questions open, the rounds stop: the verdicts rest on what is known, and the queue holds the
    open questions. With too few references to judge anything, every row is kept.
    """
    *_, last = by_round(images, expert, settings, seed=seed, embeddings=embeddings, on_step=on_step)
    return last


def by_round(
    images: Images,
    expert: Expert,
    settings: VerifySettings,
    *,
    seed: int,
    embeddings: Float[np.ndarray, "n e"] | None = None,
    withheld: Bool[np.ndarray, " n"] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[VerifyOutcome]:
    """The outcome of `verify` without any round, after the first, and so on.

    withheld: rows that the expert is never shown, to measure what was learnt. The other rows without an answer are a
    biased sample, as the rounds choose which rows are shown.
    """
    reviews = first_draw(images, expert, settings, seed=seed, withheld=withheld)
    schedule = Schedule(reviews, settings)
    if not schedule.can_judge:
        yield _outcome(schedule, None)
        return
    strategy, rows = strategy_for(settings), _rows(reviews, settings, seed, embeddings, on_step)
    judgement = strategy.first(rows, child(seed, "verify", "first"))
    outcome, last = _outcome(schedule, judgement), 0
    yield outcome
    while this := schedule.next_round(last, judgement.q.argmax(1), outcome.stopped):
        last = this.number
        _show(this, reviews, expert, judgement, settings, stream(seed, "verify", "shown", last))
        if this.rows and not (reviews.rounds == last).any():
            continue  # no row was left that it could show
        if not reviews.waiting.any():  # else the judgement that chose the rows stands until they are answered
            judgement = strategy.after_round(rows, judgement, child(seed, "verify", "round", last))
        outcome = _outcome(schedule, judgement)
        yield outcome


def _rows(
    reviews: Reviews,
    settings: VerifySettings,
    seed: int,
    embeddings: Float[np.ndarray, "n e"] | None,
    on_step: Callable[[], None],
) -> TrainingRows:
    """The rows on the device, with the pretrained encoder and the classifier's predictions where they are wanted."""
    images, start, classifier = reviews.images, None, None
    x = to_device(images.pixels) if embeddings is None else torch.from_numpy(embeddings).to(device())
    shape = images.shape if embeddings is None else embeddings.shape[1:]
    if settings.pretrain:
        start = pretrained(x, shape, steps=settings.pretrain, seed=child(seed, "verify", "encoder"), on_step=on_step)
    if settings.classifier:
        known = images.with_labels(np.where(reviews.answers >= 0, reviews.answers, images.labels))
        fold_seed = child(seed, "verify", "classifier")
        classifier = np.log(out_of_fold(known, CLASSIFIER, folds=FOLDS, seed=fold_seed, on_step=on_step) + 1e-12)
    return TrainingRows(
        x=x, shape=shape, reviews=reviews, settings=settings, start=start, classifier=classifier, on_step=on_step
    )


def _show(
    this: Round,
    reviews: Reviews,
    expert: Expert,
    judgement: Judgement,
    settings: VerifySettings,
    rng: np.random.Generator,
) -> None:
    """Shows the expert the rows that the round has yet to ask about."""
    labels, left = reviews.images.labels, this.rows
    trust = judgement.trust(labels)
    shares = SHARES if settings.choice == "active" else (0, 0)
    for rows, why in chosen_rows(judgement.q, trust, reviews, this.per_class, rng, shares):
        rows = rows[:left]
        left -= len(rows)
        reviews.ask(expert, rows, this.number, why)
        if why == RANDOM:
            judged = rows[np.isin(labels[rows], judgement.judged)]
            reviews.trust_before[judged] = trust[judged]
    shown = int((reviews.rounds == this.number).sum())
    reviews.sizes[this.number] = max(shown, reviews.sizes.get(this.number, 0))


# ---------------------------------------------------------------------------------------------------------------------
# What was found
# ---------------------------------------------------------------------------------------------------------------------


def _outcome(schedule: Schedule, judgement: Judgement | None) -> VerifyOutcome:
    reviews, settings = schedule.reviews, schedule.settings
    if judgement is None:
        return replace(outcome_of(reviews, None, settings), stopped=schedule.why_stop(None))
    findings, threshold = findings_of(judgement, reviews, settings.threshold)
    found = replace(
        outcome_of(reviews, findings, settings, judgement),
        threshold=threshold,
        scorer=judgement.scorer,
        classifier_weight=judgement.classifier_weight,
    )
    table = found.verdicts
    unseen = table[~reviews.reviewed]
    errors = expected_errors(1 - unseen["score"].to_numpy(), ~unseen["flagged"].to_numpy())
    found = replace(found, stopped=schedule.why_stop(errors))
    if settings.mode != "plus":
        return found
    return replace(  # suspicion is a probability
        found,
        label_noise_rate=float(table["score"].mean()),
        operating_points=_operating_points(reviews, judgement, settings),
        reliability=_reliability(reviews),
    )


def _operating_points(reviews: Reviews, judgement: Judgement, settings: VerifySettings) -> tuple[OperatingPoint, ...]:
    labels = reviews.images.labels
    unseen = np.isin(labels, judgement.judged) & ~reviews.reviewed
    return tuple(operating_points(judgement.trust(labels)[unseen], settings.threshold)) if unseen.any() else ()


def _reliability(reviews: Reviews) -> dict[str, float] | None:
    rows = np.isfinite(reviews.trust_before) & (reviews.answers >= 0)
    if not rows.any():
        return None
    brier, ece = reliability(reviews.trust_before[rows], reviews.confirmed[rows])
    return {"rows": int(rows.sum()), "brier": brier, "ece": ece}
