"""LabelTrust: how far can a row's label be trusted?

"LabelTrust: Filtering Poisoned Data and Model Predictions via Confidence Scores", USENIX Security 2024. A Siamese
network learns from a few rows that an expert confirmed whether two pictures show the same class; a row's label is
trusted if the row looks like the references of that label. The expert is then shown more rows, and it learns again.

``paper``: score(x, l) = mean over references r of class l of sigmoid(L(x, r)); accepted iff score >= threshold.
``plus`` (default): class scores m_c from a network trained on episodes (`decant.labeltrust.siamese`); trust is the probability
that the given label is right under a noise model fitted without the truth (`decant.labeltrust.label_noise`); and self-training: rows
whose label the network shares join its training rows. They are split into two halves, and a row is scored only by the
network that trained on the other half, so that no row vouches for itself; a row whose label is disputed never joins.

The expert decides about the rows that they saw. A label-consistent backdoor row has the right label and must pass.

Cost: `pretrain` + `steps` + 2 x (`passes` + `rounds`) x `steps` training steps, the last of these up to three times as
long on many rows (`decant.labeltrust.self_training`), and with `classifier` five trainings of one (`decant.models.cross_validation`); 2,874 digits of
16 x 16 took 23 s on one CPU core. Expected there, with 8 % wrong labels and after purification: precision .99, recall
.95-.97; of 6,000 clean MNIST rows at most 6 are dropped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from decant.data.images import Images
from decant.labeltrust import verdicts as label_verdicts
from decant.labeltrust.experts import Expert
from decant.labeltrust.pretrain import pretrained
from decant.labeltrust.review_rounds import EARLIER, RANDOM, SHARES, Reviews, chosen_rows, draw_references
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.self_training import Judgement, Learner, judged_classes, longer, trains_itself
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import Price, expected_errors, prices, reliability, wrong_share
from decant.models.cross_validation import out_of_fold, out_of_fold_steps
from decant.models.settings import TrainSettings
from decant.models.training import to_device
from decant.runtime import device

CLASSIFIER, FOLDS = TrainSettings(), 5  # of `verify.classifier`, cross-fitted
LOOKALIKES = 4  # references of a class shown beside a row that waits for the expert


@dataclass(frozen=True)
class Outcome:
    verdicts: pd.DataFrame
    reviews: pd.DataFrame
    queue: pd.DataFrame
    """Rows that wait for the expert's answer, with what the network makes of them and the references most like them."""
    noise_rate: float | None = None
    """Estimated share of wrong labels in the data as given; None when nothing was judged."""
    noise_interval: tuple[float, float] | None = None
    """95 % confidence interval of that share from the rows drawn at random alone; None where none is answered."""
    threshold: float | None = None
    """The trust from which on rows were accepted."""
    prices: tuple[Price, ...] = ()
    """What this threshold, the first, and others cost; empty where nothing was judged, or a score is no probability."""
    scorer: TrustScorer | None = None
    """Judges other pictures as these were judged."""
    reliability: dict[str, float] | None = None
    """`rows`, `brier` and `ece` of the trust, before the answers, in rows that a round drew at random; None without."""
    classifier_weight: float | None = None
    """Of the classifier's opinion beside the pairs' (`verify.classifier`); 0: it shares labels that the expert refuted,
    or adds nothing. None: it wasn't asked."""
    stopped: str | None = None
    """Why the rounds that are left are left out; None: none is."""


def steps_of(settings: VerifySettings, images: Images) -> int:
    """Training steps of one `verify`, for a progress bar's total."""
    first = settings.pretrain + settings.steps
    if settings.classifier:
        first += out_of_fold_steps(images.labels, CLASSIFIER, FOLDS)
    if not trains_itself(settings):
        return first + settings.steps * settings.rounds
    return first + 2 * longer(settings, len(images)) * (settings.passes + settings.rounds)


def verify(
    images: Images,
    expert: Expert,
    settings: VerifySettings,
    *,
    seed: int,
    embeddings: np.ndarray | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """A verdict on every row's label; the expert is asked for references first, and in each of the rounds.

    embeddings: (n, e) float32 of `decant.models.embeddings`, to compare instead of the pixels.

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
    embeddings: np.ndarray | None = None,
    withheld: np.ndarray | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """What `verify` would come to without any round, after the first, and so on.

    withheld: (n,) bool, rows that the expert is never shown. Figures on these are about what was learnt; on all rows
    that nobody reviewed they are also about which ones were left.
    """
    rng = np.random.default_rng([seed, 4])
    reviews = Reviews(images, withheld)
    draw_references(reviews, expert, settings.references, rng, settings.budget)
    if not _can_judge(reviews):
        yield _outcome(reviews, None, settings)
        return
    x = to_device(images.pixels) if embeddings is None else torch.from_numpy(embeddings).to(device())
    shape = images.shape if embeddings is None else embeddings.shape[1:]
    start = pretrained(x, shape, steps=settings.pretrain, seed=seed, on_step=on_step) if settings.pretrain else None
    opinion = _classifier_opinion(reviews, seed, on_step) if settings.classifier else None
    learner = Learner(x, shape, reviews, settings, start, opinion, on_step)
    judgement = learner.from_references(seed)
    for number in range(settings.passes if trains_itself(settings) else 0):
        judgement = learner.once_more(judgement, seed + 100 + number)
    outcome = _outcome(reviews, judgement, settings)
    yield outcome
    for number in range(1, settings.rounds + 1):
        on_file = (reviews.rounds >= number).any()  # what was asked before is learnt from, whoever stops now
        if reviews.waiting.any() or (outcome.stopped and not on_file):
            break
        if not _ask_round(reviews, expert, judgement, settings, number, rng):
            continue
        if not reviews.waiting.any():  # else the judgement that chose the rows stands until they are answered
            judgement = learner.once_more(judgement, seed + number)
        outcome = _outcome(reviews, judgement, settings)
        yield outcome


def _classifier_opinion(reviews: Reviews, seed: int, on_step: Callable[[], None]) -> np.ndarray:
    """(n, classes) log-probabilities, out of fold, of a classifier trained on the labels as far as they are known."""
    labels = np.where(reviews.answers >= 0, reviews.answers, reviews.images.labels)
    known = reviews.images.with_labels(labels)
    return np.log(out_of_fold(known, CLASSIFIER, folds=FOLDS, seed=seed, on_step=on_step) + 1e-12)


def _ask_round(
    reviews: Reviews,
    expert: Expert,
    judgement: Judgement,
    settings: VerifySettings,
    number: int,
    rng: np.random.Generator,
) -> bool:
    """Shows the rows of a round, or those that are missing of one that was answered before, in a file. False where no
    row is left that could be shown."""
    classes, trust = len(judgement.judged), judgement.trust(reviews.images.labels)
    missing = reviews.missing(number, settings.reviews * classes)
    if (reviews.why == EARLIER).any():
        missing = min(
            missing, _possible(reviews, judgement, number * settings.reviews) - int((reviews.rounds > 0).sum())
        )
    if missing <= 0:
        return True
    shares = SHARES if settings.choice == "active" else (0, 0)
    per_class = min(_affordable(reviews, settings, classes), -(-missing // classes))
    for rows, why in chosen_rows(judgement.q, trust, reviews, per_class, rng, shares):
        rows = rows[:missing]
        missing -= len(rows)
        reviews.ask(expert, rows, number, why)
        if why == RANDOM:
            judged = rows[np.isin(reviews.images.labels[rows], judgement.judged)]
            reviews.trusted[judged] = trust[judged]
    asked = reviews.rounds == number
    reviews.sizes[number] = max(int(asked.sum()), reviews.sizes.get(number, 0))
    return bool(asked.any())


def _possible(reviews: Reviews, judgement: Judgement, per_class: int) -> int:
    """Rows that rounds of so many rows per class can show in all: a class may have fewer."""
    ever = (reviews.rounds > 0) | ~reviews.reviewed
    return int(np.bincount(judgement.q[ever].argmax(1)).clip(max=per_class).sum())


def _affordable(reviews: Reviews, settings: VerifySettings, classes: int) -> int:
    """Rows per class that the next round may show."""
    left = reviews.left(settings.budget)
    return settings.reviews if left is None else min(settings.reviews, left // classes)


def _why_stop(
    reviews: Reviews, verdicts: pd.DataFrame, judgement: Judgement | None, settings: VerifySettings
) -> str | None:
    judged = reviews.images.classes if judgement is None else len(judgement.judged)
    left = reviews.left(settings.budget)
    if (reviews.rounds > 0).sum() >= settings.rounds * settings.reviews * judged:
        return None  # no round is left out
    if left is not None and left < judged:
        return f"the budget of {settings.budget} reviews is spent"
    if judgement is None:
        return None
    unseen = verdicts[~reviews.reviewed]
    wrong = expected_errors(1 - unseen["score"].to_numpy(), ~unseen["flagged"].to_numpy())
    if wrong < settings.stop_below:
        return f"{wrong:.2%} of the other rows are expected to be judged wrongly, less than {settings.stop_below:.2%}"
    return None


def _outcome(reviews: Reviews, judgement: Judgement | None, settings: VerifySettings) -> Outcome:
    verdicts, threshold = label_verdicts.verdicts(reviews, judgement, settings)
    queue = reviews.table(reviews.waiting)
    queue["rows"] = queue["round"].map(reviews.sizes).astype("Int64")
    if judgement is not None:
        queue = _explained(queue, reviews.images, judgement)
    drawn = _drawn_share(reviews)
    return Outcome(
        verdicts=verdicts,
        reviews=reviews.table(reviews.reviewed),
        queue=queue,
        noise_rate=None if judgement is None else _noise_rate(reviews, verdicts, settings),
        noise_interval=None if drawn is None else drawn[1],
        threshold=threshold,
        prices=_prices(reviews, judgement, settings),
        scorer=None if judgement is None else judgement.scorer,
        reliability=_reliability(reviews) if settings.mode == "plus" else None,
        classifier_weight=None if judgement is None else judgement.classifier_weight,
        stopped=_why_stop(reviews, verdicts, judgement, settings),
    )


def _prices(reviews: Reviews, judgement: Judgement | None, settings: VerifySettings) -> tuple[Price, ...]:
    if judgement is None or settings.mode == "paper":
        return ()
    labels = reviews.images.labels
    unseen = np.isin(labels, judgement.judged) & ~reviews.reviewed
    return tuple(prices(judgement.trust(labels)[unseen], settings.threshold)) if unseen.any() else ()


def _reliability(reviews: Reviews) -> dict[str, float] | None:
    rows = np.isfinite(reviews.trusted) & (reviews.answers >= 0)
    if not rows.any():
        return None
    brier, ece = reliability(reviews.trusted[rows], reviews.confirmed[rows])
    return {"rows": int(rows.sum()), "brier": brier, "ece": ece}


def _noise_rate(reviews: Reviews, verdicts: pd.DataFrame, settings: VerifySettings) -> float:
    """`plus`: mean suspicion, which is a probability there; `paper`: by the rows drawn at random, and where there are
    none, the share refused."""
    if settings.mode == "plus":
        return float(verdicts["score"].mean())
    drawn = _drawn_share(reviews)
    return float(verdicts["flagged"].mean()) if drawn is None else drawn[0]


def _drawn_share(reviews: Reviews) -> tuple[float, tuple[float, float]] | None:
    """Share of wrong labels, and its interval, by the rows of the first draw alone."""
    images = reviews.images
    return wrong_share(reviews.first_draw_counts(), np.bincount(images.labels, minlength=images.classes))


def _can_judge(reviews: Reviews) -> bool:
    """Two classes at least; and every class of the data while the expert may still answer, as a network that doesn't
    know a class takes its rows for others."""
    judged = judged_classes(reviews)
    if len(judged) < 2:
        return False
    references_wait = (reviews.waiting & (reviews.rounds == 0)).any()
    return not (references_wait and len(np.setdiff1d(reviews.images.labels, judged)))


# ---------------------------------------------------------------------------------------------------------------------
# What the expert sees beside a row
# ---------------------------------------------------------------------------------------------------------------------


def _explained(queue: pd.DataFrame, images: Images, judgement: Judgement) -> pd.DataFrame:
    """The queue with the network's suggestion, its trust, and the references most like the row, by their ids. Of a row
    whose label is not judged it says nothing."""
    labels, names = images.labels, np.array(images.info.class_names, object)
    rows = pd.Series(np.arange(len(labels)), index=images.ids).loc[queue["id"]].to_numpy()
    suggested, judged = judgement.suggestion(labels)[rows], np.isin(labels[rows], judgement.judged)
    trust = np.where(judged, judgement.trust(labels)[rows].round(4), np.nan)
    queue = queue.assign(suggested=np.where(judged, names[suggested], ""), trust=trust)
    if judgement.scorer is None:
        return queue
    return queue.assign(
        like_given=_lookalikes(images.pixels[rows], labels[rows], judgement.scorer),
        like_suggested=_lookalikes(images.pixels[rows], np.where(judged, suggested, -1), judgement.scorer),
    )


def _lookalikes(pixels: np.ndarray, labels: np.ndarray, scorer: TrustScorer) -> list[str]:
    """Of every picture the ids of the LOOKALIKES references of its label that it resembles most, between blanks."""
    found = np.full(len(pixels), "", object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        nearest = scorer.references.ids[scorer.nearest(pixels[rows], int(label), LOOKALIKES)]
        found[rows] = [" ".join(map(str, ids)) for ids in nearest]
    return found.tolist()
