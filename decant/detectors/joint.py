"""Influence and features together: rows that push the model to the affected points *and* look alike to it. The default.

Two views of the rows that carry the predicted label, neither of which needs the other:

    r_i = mean over points q of  s_qi / (√u_q √u_i)      self-normalised influence (`renormalised`)
    z_i = first 4 principal components of the features, that is, of the last layer's inputs (as in
          `activation_clustering`)

By influence alone a weak cause fades into the rows that share features with the point anyway; two clusters of features
exist in every class, poisoned or not. Together they are sharp: two Gaussians of one covariance Σ are fitted to (r, z),
starting from k-means of z. Rows that more likely belong to the group of higher influence are flagged, where

    separation  √(δᵀ Σ⁻¹ δ) ≥ 5.3           δ from one centre to the other
    height      (μ₁ - m) / s ≥ 5            the group's influence is far above the background's median m, in spreads s
    remainder   (μ₀ - m) / (μ₁ - m) ≤ 0.5   the other rows of the class have at most half of it
    share       ≤ 0.45 of the class         it is not the class as such; and the points' own features are on its side

the background being the rows with other labels. Where the group on whose side the points are is by far the larger
(share above 0.6), they are innocent themselves and would accuse the innocent: nothing is flagged. Two groups of about
one size must stand apart by 8, which no innocent ones did. In all other cases (a group too small to be a cluster, or
half of its class and less apart) `renormalised` decides by influence alone, as it does without `detect.same_label`.

**A second look**, where the separation falls short of that but not of 4.3: ten rows of the suspected group are asked
beside the points. If they are the cause, they carry what the points carry and accuse each other, and what the points
happen to share with innocent rows is averaged away. That sharpens innocent groups, too, so a separation of 6 is asked
for, and the two looks must agree on the rows (of those that either suspects, both do in three quarters of the cases).

Ours; how the limits were chosen, and on which cases they were tried: docs/log.md. Cost: that of `renormalised`, one
forward pass and a k-means of the class, and for a second look another pass over the rows. Expected: `python -m
benchmarks detectors`.
"""

from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from decant.data.images import Images, concat_images
from decant.detectors import renormalised
from decant.detectors._background import middle_and_spread
from decant.detectors._groups import TwoGroups
from decant.detectors.base import Case, Detection
from decant.models.features import logits_and_features

DIMENSIONS = 4
MIN_ROWS = 10  # of a cluster, for a Gaussian
MIN_SEPARATION = 5.3
MIN_HEIGHT = 5.0
MAX_REMAINDER = 0.5
MINORITY, MAJORITY = 0.45, 0.6
BEYOND_DOUBT = 8.0  # separation from which on half of a class is believed to be the cause
NEARLY, ENOUGH = 4.3, 6.0  # separations: from which on a second look is taken, and what it must show
ASKED = 10  # rows of the suspected group in the second look
AGREEMENT = 0.75
MEASURE = (
    "probability of belonging to the cause of the affected points (0 to 1), or the self-normalised influence on them "
    "(-1 to 1) where features don't help to decide"
)
CONSTANT = 1e-6  # of the largest deviation: a component below it says nothing


@dataclass(frozen=True)
class Groups(TwoGroups):
    """Of a class, by influence and features."""

    holds_the_points: bool

    @property
    def share(self) -> float:
        return float((self.upper > 0.5).mean())

    @property
    def speak_for_the_points(self) -> bool:
        return self.stand_apart(MIN_SEPARATION)

    def stand_apart(self, separation: float) -> bool:
        clear = self.separation >= separation and self.height >= MIN_HEIGHT and self.remainder <= MAX_REMAINDER
        return clear and self.holds_the_points

    @property
    def are_halves_in_doubt(self) -> bool:
        return MINORITY < self.share <= MAJORITY and self.separation < BEYOND_DOUBT

    @property
    def deserve_a_second_look(self) -> bool:
        return self.separation >= NEARLY and self.holds_the_points and self.share <= MINORITY

    def are_confirmed_by(self, second: "Groups") -> bool:
        mine, theirs = self.upper > 0.5, second.upper > 0.5
        agreed = (mine & theirs).sum() >= AGREEMENT * (mine | theirs).sum()
        return bool(agreed) and second.stand_apart(ENOUGH) and second.share <= MINORITY


def judge(case: Case, points: Images) -> Detection:
    label = int(points.labels[0])
    own = case.train.labels == label
    influence = renormalised.influence_of(case, points)
    groups = grouped(case, points, influence, own) if case.settings.same_label else None
    if groups is not None and not groups.speak_for_the_points:
        groups = second_look(case, points, groups, own) if groups.deserve_a_second_look else None
    if groups is None or groups.are_halves_in_doubt:
        return replace(renormalised.decide(case, points, influence), measure=MEASURE)
    if groups.share > MAJORITY:
        why = f"{case.said_of(points)} on the side of the larger of two groups of their class ({groups.figures})"
        return Detection.nothing(influence, f"nothing found: {why}", MEASURE)
    scores = np.zeros(len(own))
    scores[own] = groups.upper
    return groups.detection(case, points, own, scores, MEASURE)


def second_look(case: Case, points: Images, first: Groups, own: np.ndarray) -> Groups | None:
    """The groups by influence on the points and on rows of the suspected group; None where these don't confirm it."""
    suspected = np.flatnonzero(own)[first.upper > 0.5]
    asked = np.random.default_rng([case.seed, 52]).permutation(suspected)[:ASKED]
    cosines = renormalised.cosines(case, concat_images([points, case.train.select(asked)]))
    cosines[len(points) + np.arange(len(asked)), asked] = np.nan  # no row speaks for itself
    second = grouped(case, points, np.nanmean(cosines, axis=0), own)
    return second if second is not None and first.are_confirmed_by(second) else None


def grouped(case: Case, points: Images, influence: np.ndarray, own: np.ndarray) -> Groups | None:
    """The two groups of the rows `own` (n,) bool of a class; None where there are too few rows for two."""
    if min(own.sum(), (~own).sum()) < 2 * MIN_ROWS:
        return None
    of_points = logits_and_features(case.model, points.pixels)[1]
    return two_groups(influence[own], case.features[own], influence[~own], of_points, seed=case.seed)


def two_groups(
    influence: np.ndarray, features: np.ndarray, background: np.ndarray, of_points: np.ndarray, *, seed: int
) -> Groups | None:
    """Two Gaussians fitted to influence (n,) and features (n, d) together.

    background: influence on the rows with other labels (m,). of_points: features of the affected points (q, d).
    """
    pca = PCA(min(DIMENSIONS, *features.shape), random_state=seed).fit(features)
    z, seen = pca.transform(features), np.median(pca.transform(of_points), axis=0)
    telling = z.std(0) > CONSTANT * max(z.std(0).max(), 1e-12)
    z, seen = z[:, telling], seen[telling]
    if not telling.any():
        return None
    cluster = KMeans(2, n_init=10, random_state=seed).fit(z).labels_ == 1
    if min(cluster.sum(), (~cluster).sum()) < MIN_ROWS or np.ptp(influence) == 0:
        return None
    scale = np.array([influence.std(), *z.std(0)])
    both = np.column_stack([influence, z]).astype(np.float64) / scale
    centres = [both[~cluster].mean(0), both[cluster].mean(0)]
    mixture = GaussianMixture(2, covariance_type="tied", means_init=centres, reg_covar=1e-3, random_state=seed).fit(
        both
    )
    low, high = mixture.means_[:, 0].argsort()
    middle, spread = middle_and_spread(background)
    rise = mixture.means_[:, 0] * scale[0] - middle
    distance = [_mahalanobis(seen / scale[1:] - centre[1:], mixture.covariances_[1:, 1:]) for centre in mixture.means_]
    return Groups(
        upper=mixture.predict_proba(both)[:, high],
        separation=_mahalanobis(mixture.means_[high] - mixture.means_[low], mixture.covariances_),
        height=float(rise[high] / spread),
        remainder=float(rise[low] / max(rise[high], 1e-12)),
        holds_the_points=distance[high] < distance[low],
    )


def _mahalanobis(difference: np.ndarray, covariance: np.ndarray) -> float:
    return float(np.sqrt(difference @ np.linalg.solve(covariance, difference)))
