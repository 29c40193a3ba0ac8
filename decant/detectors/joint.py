"""Two groups by influence and features together: the default detector.

Two views of the rows that carry the predicted label, neither of which needs the other:

    r_i = mean over points q of  s_qi / (√u_q √u_i)      self-normalised influence (`renormalised`)
    z_i = first 4 principal components of the features, that is, of the last layer's inputs (as in
          `activation_clustering`)

By influence alone a weak cause can't be distinguished from the rows that share features with the point anyway; two
clusters of features exist in every class, poisoned or not. Together they decide sharply: two Gaussians of one
covariance Σ are fitted to (r, z), starting from k-means of z. Rows that more likely belong to the group of higher
influence are flagged, where

    separation  √(δᵀ Σ⁻¹ δ) ≥ 5.3           two groups, rather than one
    height      (μ₁ - m) / s ≥ 5            the group's influence is far above the background's
    remainder   (μ₀ - m) / (μ₁ - m) ≤ 0.5   the other rows of the class have at most half of it
    share       ≤ 0.45 of the class         it is not the class as such; and the points' own features are on its side

Symbols:  δ = μ₁ - μ₀ from the centre of the lower group to that of the upper; in height and remainder μ₀ and μ₁ are
          their first coordinates, r          m, s  median and spread of r among the rows with other labels

Where the points are on the side of the group of higher influence and that is by far the larger (share above 0.6),
innocent rows would be flagged, so nothing is. Two groups of about one size must have a separation of 8, which no two
groups of innocent rows reached. In all other cases (a group too small to be a cluster, or half of its class and less
separated) `renormalised` decides by influence alone, as it does without `detect.same_label`.

**A second look**, where the separation falls short of 5.3 but not of 4.3: influence is computed on ten rows of the
suspected group, too. If they are the cause, they carry what the points carry and have influence on each other, and what
the points happen to share with innocent rows is averaged away. That sharpens innocent groups as well, so a separation
of 6 is required, and the two looks must agree on the rows (of those that either suspects, both do in three quarters of
the cases).

Ours; how the limits were chosen, and on which cases they were tried: docs/log.md. Cost: that of `renormalised`, one
forward pass and a k-means of the class, and for a second look another pass over the rows. Expected: `python -m
benchmarks detectors`.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from decant.data.images import Images, concat_images
from decant.detectors import renormalised
from decant.detectors._background import middle_and_spread
from decant.detectors._groups import TwoGroups
from decant.detectors.base import Detection, DetectionCase
from decant.streams import child, stream

DIMENSIONS = 4
MIN_ROWS = 10  # of a cluster, for a Gaussian
MIN_SEPARATION = 5.3
MIN_HEIGHT = 5.0
MAX_REMAINDER = 0.5
MINORITY, MAJORITY = 0.45, 0.6
CLEAR_HALVES = 8.0  # separation from which on half of a class is taken for the cause
SECOND_LOOK_FROM, CONFIRMED_FROM = 4.3, 6.0  # separations: that deserves a second look, and that confirms in it
QUERY_ROWS = 10  # rows of the suspected group that are queries of the second look
AGREEMENT = 0.75
CONSTANT = 1e-6  # of the largest deviation: a component below it says nothing
MEASURE = (
    "probability of belonging to the cause of the affected points (0 to 1); where features don't help to decide, "
    "self-normalised influence on them (-1 to 1)"
)


@dataclass(frozen=True)
class JointGroups(TwoGroups):
    """Two groups of a class's rows by influence and features."""

    holds_the_points: bool
    """Whether the points' features are nearer to the upper group."""

    @property
    def share(self) -> float:
        """Share of the class's rows in the upper group."""
        return float(self.is_upper.mean())

    @property
    def is_clear(self) -> bool:
        """Whether the upper group can be the cause by the first look."""
        return self.is_clear_at(MIN_SEPARATION)

    def is_clear_at(self, separation: float) -> bool:
        """Whether the upper group can be the cause, if this separation is required."""
        apart = self.separation >= separation and self.height >= MIN_HEIGHT and self.remainder <= MAX_REMAINDER
        return apart and self.holds_the_points

    @property
    def is_doubtful_half(self) -> bool:
        """Two groups of about one size, not far enough apart to tell which of them is the cause."""
        return MINORITY < self.share <= MAJORITY and self.separation < CLEAR_HALVES

    @property
    def deserves_second_look(self) -> bool:
        """Whether a minority on the points' side is nearly far enough apart."""
        return self.separation >= SECOND_LOOK_FROM and self.holds_the_points and self.share <= MINORITY

    def is_confirmed_by(self, second: "JointGroups") -> bool:
        """Whether a second look is clear, and agrees on the rows."""
        both, either = (self.is_upper & second.is_upper).sum(), (self.is_upper | second.is_upper).sum()
        return bool(both >= AGREEMENT * either) and second.is_clear_at(CONFIRMED_FROM) and second.share <= MINORITY


def judge(case: DetectionCase, points: Images) -> Detection:
    r = renormalised.influence_of(case, points)
    own = case.train.labels == points.labels[0]
    groups = deciding_groups(case, points, r, own) if case.settings.same_label else None
    if groups is None:
        return replace(renormalised.decide(case, points, r), measure=MEASURE)
    if groups.share > MAJORITY:
        why = f"{case.count_of(points)} on the side of the larger of two groups of their class ({groups.figures})"
        return Detection.nothing(r, f"nothing found: {why}", MEASURE)
    scores = np.zeros(len(own))
    scores[own] = groups.upper
    return groups.detection(case, points, own, scores, MEASURE)


def deciding_groups(
    case: DetectionCase, points: Images, r: Float[np.ndarray, " n"], own: Bool[np.ndarray, " n"]
) -> JointGroups | None:
    """The groups of the class's rows `own`, by the first look or a second; None where influence alone has to decide."""
    first = groups_of(case, points, r, own)
    if first is None:
        return None
    if first.is_clear:
        return None if first.is_doubtful_half else first
    return second_look(case, points, first, own) if first.deserves_second_look else None


def second_look(
    case: DetectionCase, points: Images, first: JointGroups, own: Bool[np.ndarray, " n"]
) -> JointGroups | None:
    """The groups by influence on the points and on rows of the suspected group; None where they don't confirm it."""
    suspected = np.flatnonzero(own)[first.is_upper]
    queries = stream(case.seed, "joint", "second look").permutation(suspected)[:QUERY_ROWS]
    cosines = case.cosines(concat_images([points, case.train.select(queries)]))
    cosines[len(points) + np.arange(len(queries)), queries] = np.nan  # without a row's influence on itself
    second = groups_of(case, points, np.nanmean(cosines, axis=0), own)
    return second if second is not None and first.is_confirmed_by(second) else None


def groups_of(
    case: DetectionCase, points: Images, r: Float[np.ndarray, " n"], own: Bool[np.ndarray, " n"]
) -> JointGroups | None:
    """The two groups of the rows `own` of a class; None where there are too few rows for two."""
    if min(own.sum(), (~own).sum()) < 2 * MIN_ROWS:
        return None
    return two_groups(r[own], case.features[own], r[~own], case.features_of(points), seed=case.seed)


def two_groups(
    r: Float[np.ndarray, " own"],
    features: Float[np.ndarray, "own d"],
    background: Float[np.ndarray, " others"],
    of_points: Float[np.ndarray, "points d"],
    *,
    seed: int,
) -> JointGroups | None:
    """Two Gaussians fitted to influence and features together; None where the features give no two clusters.

    background: influence on the rows with other labels. of_points: features of the affected points.
    """
    pca = PCA(min(DIMENSIONS, *features.shape), random_state=child(seed, "joint", "components")).fit(features)
    z, z_points = pca.transform(features), np.median(pca.transform(of_points), axis=0)
    varies = z.std(0) > CONSTANT * max(z.std(0).max(), 1e-12)
    z, z_points = z[:, varies], z_points[varies]
    if not varies.any() or np.ptp(r) == 0:
        return None
    cluster = KMeans(2, n_init=10, random_state=child(seed, "joint", "clusters")).fit(z).labels_ == 1
    if min(cluster.sum(), (~cluster).sum()) < MIN_ROWS:
        return None
    scale = np.array([r.std(), *z.std(0)])
    rows = np.column_stack([r, z]).astype(np.float64) / scale
    centres = [rows[~cluster].mean(0), rows[cluster].mean(0)]
    mixture = GaussianMixture(
        2,
        covariance_type="tied",
        means_init=centres,
        reg_covar=1e-3,
        random_state=child(seed, "joint", "mixture"),
    ).fit(rows)
    means, covariance = mixture.means_, mixture.covariances_
    low, high = means[:, 0].argsort()
    middle, spread = middle_and_spread(background)
    rise = means[:, 0] * scale[0] - middle
    distance = [_mahalanobis(z_points / scale[1:] - mean[1:], covariance[1:, 1:]) for mean in means]
    return JointGroups(
        upper=mixture.predict_proba(rows)[:, high],
        separation=_mahalanobis(means[high] - means[low], covariance),
        height=float(rise[high] / spread),
        remainder=float(rise[low] / max(rise[high], 1e-12)),
        holds_the_points=distance[high] < distance[low],
    )


def _mahalanobis(difference: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]) -> float:
    return float(np.sqrt(difference @ np.linalg.solve(covariance, difference)))
