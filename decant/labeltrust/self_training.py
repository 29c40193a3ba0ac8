"""LabelTrust's learner: fits Siamese networks to what is known so far, and has them judge every row.

`Learner.from_references` fits one network to the references alone; `Learner.once_more` two, each to all references and
to one half of the rows whose label the last judgement shared. A row is scored by the network that didn't train on its
half. From class scores to trust: `decant.labeltrust.label_noise`. What the expert is asked in between: `decant.labeltrust.verify`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decant.labeltrust import label_noise
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.scorer import MIN_REFERENCES, TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Pool, Siamese, class_scores, train

REFERENCE_ROWS = 8  # of a class in an episode of the first network
MIXED_ROWS = (2, 8)  # of a class in a self-training episode: references, and references or shared rows
MIN_CONFIDENCE = 0.5  # of a row to join self-training; surer rows alone are too easy to learn much from
MOST_TIMES_STEPS, ROWS_PER_TIMES_STEPS = 3, 4_000
"""A self-training network takes up to 3 times `steps`, from 12,000 rows on. On MNIST's 60,000, before any review, at
99.9 % of the wrong labels refused: 6.7 % of the right ones refused with 200 steps, 2.7 % with 600."""


@dataclass(frozen=True)
class Judgement:
    """What a fitted model makes of every row. Columns of classes with fewer than two references are 0."""

    q: np.ndarray  # (n, classes): confidence by the picture alone
    belief: np.ndarray  # (n, classes): by picture and given label; `paper`: the same as q
    judged: np.ndarray  # classes that have references enough
    scorer: TrustScorer | None
    """The networks with their references, to judge other pictures; None where they compared embeddings."""
    classifier_weight: float | None = None
    """Of the classifier's opinion in q and belief; None where there is none."""

    def trust(self, labels: np.ndarray) -> np.ndarray:
        return self.belief[np.arange(len(labels)), labels]

    def suggestion(self, labels: np.ndarray) -> np.ndarray:
        """(n,) the likeliest class other than the given one."""
        others = self.belief.copy()
        others[np.arange(len(labels)), labels] = -1
        return others.argmax(1)


def longer(settings: VerifySettings, rows: int) -> int:
    """Training steps of a network that also learns from shared rows: the more of these, the longer it pays."""
    return settings.steps * min(MOST_TIMES_STEPS, max(1, rows // ROWS_PER_TIMES_STEPS))


def trains_itself(settings: VerifySettings) -> bool:
    return settings.mode == "plus" and settings.passes > 0


def judged_classes(reviews: Reviews) -> np.ndarray:
    counts = np.bincount(reviews.answers[reviews.references], minlength=reviews.images.classes)
    return np.flatnonzero(counts >= MIN_REFERENCES)


@dataclass(frozen=True)
class Learner:
    """Fits networks to what is known so far, and has them judge every row."""

    x: Tensor  # (n, c, h, w) uint8 or (n, e) float32, on the device
    shape: tuple[int, ...]  # of a row
    reviews: Reviews
    settings: VerifySettings
    start: Mapping[str, Tensor] | None
    """Weights from which every network's encoder starts."""
    opinion: np.ndarray | None
    """(n, classes) log-probabilities of a classifier that trained on the given labels of other rows."""
    on_step: Callable[[], None]

    def from_references(self, seed: int) -> Judgement:
        """Of a network that learns from the references alone."""
        judged = judged_classes(self.reviews)
        rows, pool = self._references(judged)
        model = self._train([(pool, REFERENCE_ROWS)], self.settings.steps, seed)
        return self._judgement(class_scores(model, self.x, pool).cpu().numpy(), judged, [model], rows)

    def once_more(self, last: Judgement, seed: int) -> Judgement:
        """Of new networks that learn from all references and, in `plus`, from rows whose label the last shared."""
        if not trains_itself(self.settings):
            return self.from_references(seed)
        judged, labels = judged_classes(self.reviews), self.reviews.images.labels
        shared = (last.q.argmax(1) == labels) & (last.q.max(1) >= MIN_CONFIDENCE)
        shared &= ~self.reviews.reviewed & np.isin(labels, judged)
        half = np.random.default_rng([seed, 5]).permutation(len(labels)) % 2
        rows, references = self._references(judged)
        scores, models = np.empty((len(labels), len(judged)), np.float32), []
        for side in (0, 1):
            own, others = np.flatnonzero(shared & (half == side)), np.flatnonzero(half != side)
            mixed = self._pool(judged, np.concatenate([rows, own]), np.concatenate([self._answers(rows), labels[own]]))
            pools = [(references, MIXED_ROWS[0]), (mixed, MIXED_ROWS[1])]
            model = self._train(pools, longer(self.settings, len(labels)), seed + 1000 * side)
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
        alone = label_noise.fit(scores[unseen], given[unseen], counts)
        weight, logits, model = None, scores, alone
        if self.opinion is not None:
            log_p = self.opinion[np.ix_(unseen, judged)]
            weight = 0.0 if self._misled(self.opinion) else label_noise.best_share(scores[unseen], log_p, given[unseen])
            logits = (1 - weight) * scores + weight * self.opinion[:, judged]
            model = label_noise.fit(logits[unseen], given[unseen], counts)
        q[:, judged] = label_noise.softmax(logits / model.temperature)
        belief[:, judged] = np.where(known[:, None], model.posterior(logits, given), q[:, judged])
        if len(self.shape) != 3:
            return Judgement(q, belief, judged, None, weight)
        ordinary = scores[unseen if unseen.any() else rows]  # the expert saw all rows: the references stand for others
        scorer = TrustScorer.of(models, references, mode="plus", temperature=alone.temperature, ordinary=ordinary)
        return Judgement(q, belief, judged, scorer, weight)

    def _misled(self, opinion: np.ndarray) -> bool:
        """Whether the classifier shares most of the labels that the expert refuted in the first draw. Then it has
        learnt what came with them: a trigger, say."""
        reviews = self.reviews
        refuted = np.setdiff1d(reviews.first_draw, np.flatnonzero(reviews.confirmed))
        given, right = opinion[refuted, reviews.images.labels[refuted]], opinion[refuted, reviews.answers[refuted]]
        return bool((given > right).sum() > len(refuted) / 2)
