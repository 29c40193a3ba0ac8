"""How LabelTrust's networks are trained: three strategies, each from the references to a judgement of every row.

    Paper        `mode: paper`               one network on the references; its scores are the trust
    References   `mode: plus`, `passes: 0`   one network on the references; trust by a label-noise model
    TwoHalves    `mode: plus` (default)      self-training: also on rows whose label agrees with the last judgement

`TwoHalves` divides the rows into two random halves and trains one network for each: on all references, and on those
rows of its half whose label agrees with the last judgement. A row is scored by the network of the other half, so that
no row confirms its own label, and a row whose label disagrees is not trained on.

From class scores to trust: `decant.labeltrust.judgement`. What the expert is asked in between:
`decant.labeltrust.verify`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from decant.labeltrust.judgement import Fit, Judgement, by_posterior, by_score
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.schedule import Schedule
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Pool, Siamese, class_scores, train
from decant.streams import child, stream

REFERENCE_ROWS = 8  # of a class in an episode of the first network
MIXED_ROWS = (2, 8)  # of a class in a self-training episode: references, and references or agreeing rows
MIN_CONFIDENCE = 0.5  # that a row needs to join self-training; surer rows alone are too easy to learn much from
MOST_TIMES_STEPS, ROWS_PER_TIMES_STEPS = 3, 4_000
"""A self-training network takes up to 3 times `steps`, from 12,000 rows on. On MNIST's 60,000, before any review, at
99.9 % of the wrong labels refused: 6.7 % of the right ones refused with 200 steps, 2.7 % with 600."""


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """All rows, what the expert said about them, and how a network is trained on some of them."""

    x: Num[Tensor, "n ..."]
    """On the device: (n, c, h, w) uint8 pixels or (n, e) float32 embeddings."""
    shape: tuple[int, ...]
    """Of a row: (height, width, channels) or (e,)."""
    reviews: Reviews
    settings: VerifySettings
    start: Mapping[str, Tensor] | None = None
    """Weights from which every network's encoder starts; None: random ones."""
    classifier: Float[np.ndarray, "n classes"] | None = None
    """Out-of-fold log-probabilities of a classifier that trained on the given labels."""
    on_step: Callable[[], None] = lambda: None

    @property
    def pixels(self) -> bool:
        """Whether networks compare pixels, not embeddings."""
        return len(self.shape) == 3

    @property
    def judged(self) -> Int[np.ndarray, " judged"]:
        """Classes that have references enough, ascending."""
        return Schedule(self.reviews, self.settings).judged

    def references(self) -> Int[np.ndarray, " m"]:
        """Row numbers of the references of judged classes, sorted by their class."""
        rows, answers = self.reviews.references, self.reviews.answers
        rows = rows[np.isin(answers[rows], self.judged)]
        return rows[np.argsort(answers[rows], kind="stable")]

    def pool(self, rows: Int[np.ndarray, " r"]) -> Pool:
        """Rows to train on, under the expert's label where there is one, else under the given one."""
        labels = np.where(self.reviews.answers >= 0, self.reviews.answers, self.reviews.images.labels)[rows]
        columns = torch.from_numpy(np.searchsorted(self.judged, labels)).to(self.x.device)
        return Pool.of(self.at(rows), columns, len(self.judged))

    def at(self, rows: Int[np.ndarray, " r"]) -> Num[Tensor, "r ..."]:
        """The inputs of those rows."""
        return self.x[torch.from_numpy(rows).to(self.x.device)]

    def train(self, pools: list[tuple[Pool, int]], steps: int, seed: int) -> Siamese:
        """A network trained on the pools (`decant.labeltrust.siamese.train`)."""
        mode = self.settings.mode
        return train(pools, self.shape, mode=mode, steps=steps, seed=seed, start=self.start, on_step=self.on_step)


def fit_references(rows: TrainingRows, seed: int) -> Fit:
    """One network, trained on the references alone, scores every row."""
    references = rows.references()
    pool = rows.pool(references)
    network = rows.train([(pool, REFERENCE_ROWS)], rows.settings.steps, seed)
    return Fit([network], rows.judged, references, class_scores(network, rows.x, pool).cpu().numpy())


def fit_halves(rows: TrainingRows, last: Judgement, seed: int) -> Fit:
    """Two networks, each trained on the references and on one half of the rows, score the other half each.

    Of its half a network trains on the rows whose label agrees with `last`, the last judgement.
    """
    labels, judged = rows.reviews.images.labels, rows.judged
    agreeing = (last.q.argmax(1) == labels) & (last.q.max(1) >= MIN_CONFIDENCE)
    agreeing &= ~rows.reviews.reviewed & np.isin(labels, judged)
    half = stream(seed, "halves").permutation(len(labels)) % 2
    references = rows.references()
    pool = rows.pool(references)
    scores, networks = np.empty((len(labels), len(judged)), np.float32), []
    for side in (0, 1):
        own, others = np.flatnonzero(agreeing & (half == side)), np.flatnonzero(half != side)
        pools = [(pool, MIXED_ROWS[0]), (rows.pool(np.concatenate([references, own])), MIXED_ROWS[1])]
        network = rows.train(pools, _self_training_steps(rows.settings, len(labels)), child(seed, "half", side))
        scores[others] = class_scores(network, rows.at(others), pool).cpu().numpy()
        networks.append(network)
    return Fit(networks, judged, references, scores)


def _self_training_steps(settings: VerifySettings, rows: int) -> int:
    """Training steps of one network of a self-training pass: more where there are many rows to learn from."""
    return settings.steps * min(MOST_TIMES_STEPS, max(1, rows // ROWS_PER_TIMES_STEPS))


# ---------------------------------------------------------------------------------------------------------------------
# The strategies
# ---------------------------------------------------------------------------------------------------------------------


class Strategy(Protocol):
    """How networks are trained and how their scores become trust."""

    def first(self, rows: TrainingRows, seed: int) -> Judgement:
        """The judgement after the first draw, from scratch."""

    def after_round(self, rows: TrainingRows, last: Judgement, seed: int) -> Judgement:
        """The judgement by new networks after a round of review. last: the judgement that the round was chosen by."""

    def steps(self, rows: int, rounds: int) -> int:
        """Training steps of `first` and of `rounds` calls of `after_round`, on so many rows."""


@dataclass(frozen=True)
class References:
    """One network on the references; the trust is a posterior."""

    settings: VerifySettings

    def first(self, rows: TrainingRows, seed: int) -> Judgement:
        return by_posterior(fit_references(rows, seed), rows.reviews, rows.classifier, pixels=rows.pixels)

    def after_round(self, rows: TrainingRows, last: Judgement, seed: int) -> Judgement:
        return self.first(rows, seed)

    def steps(self, rows: int, rounds: int) -> int:
        return self.settings.steps * (1 + rounds)


class Paper(References):
    """The method as published: one network on the references, its score taken as it is."""

    def first(self, rows: TrainingRows, seed: int) -> Judgement:
        return by_score(fit_references(rows, seed), rows.reviews, pixels=rows.pixels)


@dataclass(frozen=True)
class TwoHalves:
    """Self-training: `References` first, then two networks that also learn from rows whose label agrees."""

    settings: VerifySettings

    def first(self, rows: TrainingRows, seed: int) -> Judgement:
        judgement = References(self.settings).first(rows, seed)
        for number in range(self.settings.passes):
            judgement = self.after_round(rows, judgement, child(seed, "pass", number))
        return judgement

    def after_round(self, rows: TrainingRows, last: Judgement, seed: int) -> Judgement:
        return by_posterior(fit_halves(rows, last, seed), rows.reviews, rows.classifier, pixels=rows.pixels)

    def steps(self, rows: int, rounds: int) -> int:
        return self.settings.steps + 2 * _self_training_steps(self.settings, rows) * (self.settings.passes + rounds)


def strategy_for(settings: VerifySettings) -> Strategy:
    """The strategy that `verify.mode` and `verify.passes` ask for."""
    if settings.mode == "paper":
        return Paper(settings)
    return TwoHalves(settings) if settings.passes else References(settings)
