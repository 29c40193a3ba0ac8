"""LabelTrust: how far can a row's label be trusted?

"LabelTrust: Filtering Poisoned Data and Model Predictions via Confidence Scores", USENIX Security 2024. A Siamese
network learns from a few rows that an expert confirmed whether two pictures show the same class; a row's label is
trusted if the row looks like the references of that label. The expert is then shown more rows, and it learns again.

``paper``: score(x, l) = mean over references r of class l of sigmoid(L(x, r)); accepted iff score >= threshold.
``plus`` (default): class scores m_c from a network trained on episodes (`decant.siamese`); trust is the probability
that the given label is right under a noise model fitted without the truth (`decant.noise`); and self-training: rows
whose label the network shares join its training rows. They are split into two halves, and a row is scored only by the
network that trained on the other half, so that no row vouches for itself; a row whose label is disputed never joins.

The expert decides about the rows that they saw. A label-consistent backdoor row has the right label and must pass.

Cost: `steps` x (1 + 2 x rounds) training steps; 2,874 digits of 16 x 16 took 23 s on one CPU core. Expected there, with
8 % wrong labels and after purification: precision .99, recall .95-.97; of 6,000 clean MNIST rows at most 6 are dropped.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from decant import label_verdicts, noise
from decant.expert import Expert
from decant.images import Images
from decant.pretrain import pretrained
from decant.promises import expected_errors, wrong_share
from decant.refeed import SHARES, Reviews, chosen_rows, draw_references
from decant.runtime import device
from decant.scorer import TrustScorer
from decant.settings import VerifySettings
from decant.siamese import Pool, Siamese, class_scores, train
from decant.training import to_device

MIN_REFERENCES = 2  # of a class, as in the paper: one row makes no same-class pair
REFERENCE_ROWS = 8  # of a class in an episode of the first network
MIXED_ROWS = (2, 8)  # of a class in a self-training episode: references, and references or shared rows
MIN_CONFIDENCE = 0.5  # of a row to join self-training; surer rows alone are too easy to learn much from
MOST_TIMES_STEPS, ROWS_PER_TIMES_STEPS = 3, 4_000
"""A self-training network takes up to 3 times `steps`, from 12,000 rows on. On MNIST's 60,000, before any review, at
99.9 % of the wrong labels refused: 6.7 % of the right ones refused with 200 steps, 2.7 % with 600."""
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
    """95 % confidence interval of that share from the rows drawn at random alone; None when nobody answered."""
    threshold: float | None = None
    """The trust from which on rows were accepted."""
    scorer: TrustScorer | None = None
    """Judges other pictures as these were judged."""
    stopped: str | None = None
    """Why the rounds that are left are left out; None: none is."""


@dataclass(frozen=True)
class Judgement:
    """What a fitted model makes of every row. Columns of classes without references are 0."""

    q: np.ndarray  # (n, classes): confidence by the picture alone
    belief: np.ndarray  # (n, classes): by picture and given label; `paper`: the same as q
    judged: np.ndarray  # classes that have references enough
    scorer: TrustScorer | None
    """The networks with their references, to judge other pictures; None where they compared embeddings."""

    def trust(self, labels: np.ndarray) -> np.ndarray:
        return self.belief[np.arange(len(labels)), labels]

    def suggestion(self, labels: np.ndarray) -> np.ndarray:
        """(n,) the likeliest class other than the given one."""
        others = self.belief.copy()
        others[np.arange(len(labels)), labels] = -1
        return others.argmax(1)


def steps_of(settings: VerifySettings, rows: int) -> int:
    """Training steps of one `verify`, for a progress bar's total."""
    if not _trains_itself(settings):
        return settings.pretrain + settings.steps * (1 + settings.rounds)
    return settings.pretrain + settings.steps + 2 * _longer(settings, rows) * (settings.passes + settings.rounds)


def _longer(settings: VerifySettings, rows: int) -> int:
    """Training steps of a network that also learns from shared rows: the more of these, the longer it pays."""
    return settings.steps * min(MOST_TIMES_STEPS, max(1, rows // ROWS_PER_TIMES_STEPS))


def _trains_itself(settings: VerifySettings) -> bool:
    return settings.mode == "plus" and settings.passes > 0


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

    embeddings: (n, e) float32 of `decant.embeddings`, to compare instead of the pixels.

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
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """What `verify` would come to without any round, after the first, and so on."""
    rng = np.random.default_rng([seed, 4])
    reviews = Reviews(images)
    draw_references(reviews, expert, settings.references, rng, settings.budget)
    if not _can_judge(reviews):
        yield _outcome(reviews, None, settings)
        return
    x = to_device(images.pixels) if embeddings is None else torch.from_numpy(embeddings).to(device())
    shape = images.shape if embeddings is None else embeddings.shape[1:]
    start = pretrained(x, shape, steps=settings.pretrain, seed=seed, on_step=on_step) if settings.pretrain else None
    learner = _Learner(x, shape, reviews, settings, start, on_step)
    judgement = learner.from_references(seed)
    for number in range(settings.passes if _trains_itself(settings) else 0):
        judgement = learner.once_more(judgement, seed + 100 + number)
    outcome = _outcome(reviews, judgement, settings)
    yield outcome
    for number in range(1, settings.rounds + 1):
        if reviews.waiting.any() or outcome.stopped:
            break
        wanted = number * settings.reviews * len(judgement.judged)
        if (reviews.rounds > 0).sum() >= wanted:  # answered earlier, in a file
            continue
        trust = judgement.trust(images.labels)
        shares = SHARES if settings.choice == "active" else (0, 0)
        per_class = _affordable(reviews, settings, len(judgement.judged))
        for rows, why in chosen_rows(judgement.q, trust, reviews, per_class, rng, shares):
            reviews.ask(expert, rows, number, why)
        judgement = learner.once_more(judgement, seed + number)
        outcome = _outcome(reviews, judgement, settings)
        yield outcome


def _affordable(reviews: Reviews, settings: VerifySettings, classes: int) -> int:
    """Rows per class that the next round may show."""
    left = reviews.left(settings.budget)
    return settings.reviews if left is None else min(settings.reviews, left // classes)


def _why_stop(reviews: Reviews, verdicts: pd.DataFrame, judged: int, settings: VerifySettings) -> str | None:
    """judged: classes that are."""
    left = reviews.left(settings.budget)
    if (reviews.rounds > 0).sum() >= settings.rounds * settings.reviews * judged:
        return None  # no round is left out
    if left is not None and left < judged:
        return f"the budget of {settings.budget} reviews is spent"
    unseen = verdicts[~reviews.reviewed]
    wrong = expected_errors(1 - unseen["score"].to_numpy(), ~unseen["flagged"].to_numpy())
    if wrong < settings.stop_below:
        return f"{wrong:.2%} of the other rows are expected to be judged wrongly, less than {settings.stop_below:.2%}"
    return None


def _outcome(reviews: Reviews, judgement: Judgement | None, settings: VerifySettings) -> Outcome:
    verdicts, threshold = label_verdicts.verdicts(reviews, judgement, settings)
    queue = reviews.table(reviews.waiting)
    if judgement is not None:
        queue = _explained(queue, reviews.images, judgement)
    judged = reviews.images.classes if judgement is None else len(judgement.judged)
    confirmed, refuted = reviews.first_draw_counts().trace(), reviews.first_draw_counts().sum()
    return Outcome(
        verdicts=verdicts,
        reviews=reviews.table(reviews.reviewed),
        queue=queue,
        noise_rate=None if judgement is None else _noise_rate(reviews, verdicts, settings),
        noise_interval=wrong_share(int(confirmed), int(refuted - confirmed)) if confirmed else None,
        threshold=threshold,
        scorer=None if judgement is None else judgement.scorer,
        stopped=_why_stop(reviews, verdicts, judged, settings),
    )


def _noise_rate(reviews: Reviews, verdicts: pd.DataFrame, settings: VerifySettings) -> float:
    """`plus`: mean suspicion, which is a probability there; `paper`: share refuted of the rows drawn at random."""
    if settings.mode == "plus":
        return float(verdicts["score"].mean())
    counts = reviews.first_draw_counts()
    return float(1 - np.trace(counts) / max(1.0, counts.sum()))


# ---------------------------------------------------------------------------------------------------------------------
# Judgement
# ---------------------------------------------------------------------------------------------------------------------


def _judged_classes(reviews: Reviews) -> np.ndarray:
    counts = np.bincount(reviews.answers[reviews.references], minlength=reviews.images.classes)
    return np.flatnonzero(counts >= MIN_REFERENCES)


def _can_judge(reviews: Reviews) -> bool:
    """Two classes at least; and every class of the data while the expert may still answer, as a network that doesn't
    know a class takes its rows for others."""
    judged = _judged_classes(reviews)
    if len(judged) < 2:
        return False
    return not (reviews.waiting.any() and len(np.setdiff1d(reviews.images.labels, judged)))


@dataclass(frozen=True)
class _Learner:
    """Fits networks to what is known so far, and has them judge every row."""

    x: Tensor  # (n, c, h, w) uint8 or (n, e) float32, on the device
    shape: tuple[int, ...]  # of a row
    reviews: Reviews
    settings: VerifySettings
    start: Mapping[str, Tensor] | None
    """Weights from which every network's encoder starts."""
    on_step: Callable[[], None]

    def from_references(self, seed: int) -> Judgement:
        """Of a network that learns from the references alone."""
        judged = _judged_classes(self.reviews)
        rows, pool = self._references(judged)
        model = self._train([(pool, REFERENCE_ROWS)], self.settings.steps, seed)
        return self._judgement(class_scores(model, self.x, pool).cpu().numpy(), judged, [model], rows)

    def once_more(self, last: Judgement, seed: int) -> Judgement:
        """Of new networks that learn from all references and, in `plus`, from rows whose label the last shared."""
        if not _trains_itself(self.settings):
            return self.from_references(seed)
        judged, labels = _judged_classes(self.reviews), self.reviews.images.labels
        shared = (last.q.argmax(1) == labels) & (last.q.max(1) >= MIN_CONFIDENCE)
        shared &= ~self.reviews.reviewed & np.isin(labels, judged)
        half = np.random.default_rng([seed, 5]).permutation(len(labels)) % 2
        rows, references = self._references(judged)
        scores, models = np.empty((len(labels), len(judged)), np.float32), []
        for side in (0, 1):
            own, others = np.flatnonzero(shared & (half == side)), np.flatnonzero(half != side)
            mixed = self._pool(judged, np.concatenate([rows, own]), np.concatenate([self._answers(rows), labels[own]]))
            pools = [(references, MIXED_ROWS[0]), (mixed, MIXED_ROWS[1])]
            model = self._train(pools, _longer(self.settings, len(labels)), seed + 1000 * side)
            scores[others] = class_scores(model, self._at(others), references).cpu().numpy()
            models.append(model)
        return self._judgement(scores, judged, models, rows)

    def _references(self, judged: np.ndarray) -> tuple[np.ndarray, Pool]:
        """(row numbers sorted by class, the pool of them) of the judged classes under the expert's labels."""
        rows = self.reviews.references[np.isin(self._answers(self.reviews.references), judged)]
        rows = rows[np.argsort(self._answers(rows), kind="stable")]
        return rows, self._pool(judged, rows, self._answers(rows))

    def _answers(self, rows: np.ndarray) -> np.ndarray:
        return self.reviews.answers[rows]

    def _pool(self, judged: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> Pool:
        columns = torch.from_numpy(np.searchsorted(judged, labels)).to(self.x.device)
        return Pool.of(self._at(rows), columns, len(judged))

    def _at(self, rows: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(rows).to(self.x.device)]

    def _train(self, pools: list[tuple[Pool, int]], steps: int, seed: int) -> Siamese:
        mode, start = self.settings.mode, self.start
        return train(pools, self.shape, mode=mode, steps=steps, seed=seed, start=start, on_step=self.on_step)

    def _judgement(self, scores: np.ndarray, judged: np.ndarray, models: list[Siamese], rows: np.ndarray) -> Judgement:
        """scores: (n, judged classes), pair logits in `plus`, mean sigmoids in `paper`; rows: of the references."""
        reviews = self.reviews
        labels = reviews.images.labels
        references = reviews.images.select(rows).with_labels(self._answers(rows))
        q = np.zeros((len(labels), reviews.images.classes))
        belief = np.zeros_like(q)
        if self.settings.mode == "paper":
            q[:, judged] = belief[:, judged] = scores
            scorer = TrustScorer.of(models, references, mode="paper") if len(self.shape) == 3 else None
            return Judgement(q, belief, judged, scorer)
        given = np.searchsorted(judged, labels).clip(max=len(judged) - 1)
        known = np.isin(labels, judged)
        counts = reviews.first_draw_counts()[np.ix_(judged, judged)]
        unseen = known & ~reviews.reviewed
        model = noise.fit(scores[unseen], given[unseen], counts)
        q[:, judged] = noise.softmax(scores / model.temperature)
        belief[:, judged] = np.where(known[:, None], model.posterior(scores, given), q[:, judged])
        if len(self.shape) != 3:
            return Judgement(q, belief, judged, None)
        scorer = TrustScorer.of(models, references, mode="plus", temperature=model.temperature, ordinary=scores[unseen])
        return Judgement(q, belief, judged, scorer)


# ---------------------------------------------------------------------------------------------------------------------
# What the expert sees beside a row
# ---------------------------------------------------------------------------------------------------------------------


def _explained(queue: pd.DataFrame, images: Images, judgement: Judgement) -> pd.DataFrame:
    """The queue with the network's suggestion, its trust, and the references most like the row, by their ids."""
    labels, names = images.labels, np.array(images.info.class_names, object)
    rows = pd.Series(np.arange(len(labels)), index=images.ids).loc[queue["id"]].to_numpy()
    suggested = judgement.suggestion(labels)[rows]
    queue = queue.assign(suggested=names[suggested], trust=judgement.trust(labels)[rows].round(4))
    if judgement.scorer is None:
        return queue
    return queue.assign(
        like_given=_lookalikes(images.pixels[rows], labels[rows], judgement.scorer),
        like_suggested=_lookalikes(images.pixels[rows], suggested, judgement.scorer),
    )


def _lookalikes(pixels: np.ndarray, labels: np.ndarray, scorer: TrustScorer) -> list[str]:
    """Of every picture the ids of the LOOKALIKES references of its label that it resembles most, between blanks."""
    found = np.full(len(pixels), "", object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        nearest = scorer.references.ids[scorer.nearest(pixels[rows], int(label), LOOKALIKES)]
        found[rows] = [" ".join(map(str, ids)) for ids in nearest]
    return found.tolist()
