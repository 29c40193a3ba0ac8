"""From class scores to the trust in every label.

    paper   trust(x, l) = score(x, l), the mean pair sigmoid, which is not a probability
    plus    trust(x, l) = P(l is right | picture, given label), by a label-noise model that is fitted without the truth
            (`decant.labeltrust.label_noise`)

In `plus` a classifier may add its out-of-fold log-probabilities to the scores (`verify.classifier`). A classifier
learns a trigger like any other feature and then repeats the attacker's labels. So its weight is 0 where it repeats most
of the labels that the expert refuted in the first draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from decant.data.images import Images
from decant.labeltrust import label_noise
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.siamese import Siamese


@dataclass(frozen=True)
class Fit:
    """Fitted networks, and the class scores that each row got from a network which did not train on it.

    References are trained on, and are scored all the same.
    """

    networks: Sequence[Siamese]
    judged: Int[np.ndarray, " judged"]
    """Classes that have references enough, ascending."""
    references: Int[np.ndarray, " m"]
    """Row numbers of the references, sorted by class."""
    scores: Float[np.ndarray, "n judged"]
    """`plus`: mean pair logits with the references of a class; `paper`: mean pair sigmoids."""


@dataclass(frozen=True)
class Judgement:
    """Confidence in every class of every row. Columns of classes that are not judged are 0."""

    q: Float[np.ndarray, "n classes"]
    """Confidence by the picture alone."""
    belief: Float[np.ndarray, "n classes"]
    """Confidence by picture and given label; `paper`: the same as q."""
    judged: Int[np.ndarray, " judged"]
    """Classes that have references enough, ascending."""
    scorer: TrustScorer | None
    """The networks with their references, to judge other pictures; None where they compared embeddings."""
    classifier_weight: float | None = None
    """Weight of the classifier's out-of-fold predictions in q and belief; None where there are none."""

    def trust(self, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Belief in the given labels."""
        return self.belief[np.arange(len(labels)), labels]

    def suggestion(self, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The likeliest class other than the given one."""
        others = self.belief.copy()
        others[np.arange(len(labels)), labels] = -1
        return others.argmax(1)


def by_score(fit: Fit, reviews: Reviews, *, pixels: bool) -> Judgement:
    """The judgement of mode `paper`: the score itself is the trust.

    pixels: whether the networks compared pixels, not embeddings.
    """
    q = np.zeros((len(reviews.images), reviews.images.classes))
    q[:, fit.judged] = fit.scores
    scorer = TrustScorer.uncalibrated(fit.networks, _reference_images(fit, reviews)) if pixels else None
    return Judgement(q, q, fit.judged, scorer)


def by_posterior(
    fit: Fit, reviews: Reviews, classifier: Float[np.ndarray, "n classes"] | None, *, pixels: bool
) -> Judgement:
    """The judgement of mode `plus`: the trust is the posterior of a label-noise model, fitted to the unreviewed rows.

    classifier: out-of-fold log-probabilities; pixels: whether the networks compared pixels, not embeddings.
    """
    labels, judged = reviews.images.labels, fit.judged
    is_judged = np.isin(labels, judged)
    given = np.searchsorted(judged, labels).clip(max=len(judged) - 1)  # column of the label, where it is judged
    unseen = is_judged & ~reviews.reviewed
    counts = reviews.first_draw_counts()[np.ix_(judged, judged)]
    by_pairs = label_noise.fit(fit.scores[unseen], given[unseen], counts)
    weight, logits, model = None, fit.scores, by_pairs
    if classifier is not None:
        log_p = classifier[:, judged]
        weight = label_noise.best_classifier_weight(fit.scores[unseen], log_p[unseen], given[unseen])
        if repeats_refuted_labels(classifier, reviews):
            weight = 0.0
        logits = (1 - weight) * fit.scores + weight * log_p
        model = label_noise.fit(logits[unseen], given[unseen], counts)
    q = np.zeros((len(labels), reviews.images.classes))
    belief = np.zeros_like(q)
    q[:, judged] = model.likelihood(logits)
    belief[:, judged] = np.where(is_judged[:, None], model.posterior(logits, given), q[:, judged])
    scorer = _calibrated_scorer(fit, reviews, by_pairs.temperature, unseen) if pixels else None
    return Judgement(q, belief, judged, scorer, weight)


def repeats_refuted_labels(log_p: Float[np.ndarray, "n classes"], reviews: Reviews) -> bool:
    """Whether a classifier prefers the given label to the expert's in most rows of the first draw that were refuted.

    Then it has learnt what came with the wrong labels, such as a trigger.
    """
    rows = reviews.first_draw[reviews.refuted[reviews.first_draw]]
    given, right = log_p[rows, reviews.images.labels[rows]], log_p[rows, reviews.answers[rows]]
    return bool((given > right).sum() > len(rows) / 2)


def _calibrated_scorer(fit: Fit, reviews: Reviews, temperature: float, unseen: np.ndarray) -> TrustScorer:
    """unseen: (n,) bool, the judged rows without an answer; where the expert saw all, the references stand in."""
    ordinary = fit.scores[unseen if unseen.any() else fit.references]
    references = _reference_images(fit, reviews)
    return TrustScorer.calibrated(fit.networks, references, temperature=temperature, ordinary=ordinary)


def _reference_images(fit: Fit, reviews: Reviews) -> Images:
    """The references under the expert's labels."""
    return reviews.images.select(fit.references).with_labels(reviews.answers[fit.references])
