"""Self-normalised influence: rows whose gradient points the same way as that of the affected points.

Hammoudeh & Lowd, CCS 2022 (arXiv 2201.10055, "renormalised influence"); Barshan et al. 2020 (RelatIF). Plain influence
ranks first whatever has a large gradient, mislabelled rows above all; divided by both lengths it is a cosine in the
metric of the inverse curvature, and only the direction is left:

    r_i = mean over affected points q of  s_qi / (√u_q √u_i)        in [-1, 1]

Ours is the decision, which is made without the truth and without an assumed number of poisoned rows. Two Gaussians are
fitted to r of the candidates (rows with the label that was predicted); rows that more likely belong to the upper one
are flagged. Two Gaussians can be fitted to anything, so three conditions must hold first, or nothing is flagged. They
use the rows with *other* labels as the background: what r is where there is no common cause.

    separation  (μ₁ - μ₀) / √((σ₀² + σ₁²) / 2) ≥ 2.5      two groups, rather than one with a tail
    height      (μ₁ - m) / s ≥ 9                          the upper one is far outside the background
    remainder   (μ₀ - m) / (μ₁ - m) ≤ 0.2                 the lower one is background: the class as such is innocent

Where the separation is 5 or more, a remainder of 0.4 suffices: natural mistakes don't split a class that sharply.

Symbols:  s_qi influence, u_q and u_i self-influence: `decant.influence.functions`
          μ₀, σ₀ and μ₁, σ₁  the lower and the upper Gaussian         m, s  median and spread of the background

A natural mistake (a 9 that looks like a 5) fails them, because the whole class shares features with it. What they can't
recognise is a rightly predicted point, reported by mistake, in a class that is poisoned: its innocent rows are a group
too. How the limits were chosen, and what they did on cases that played no part in it: docs/methods/influence.md.

Cost: EK-FAC's two passes over the rows and one for the scores; 5 points on 2,874 digits: 3 s on one CPU core.
Expected on digits: precision and recall 0.97 to 1 for both kinds of BadNet, none flagged on clean data.
"""

import numpy as np
from jaxtyping import Float
from sklearn.mixture import GaussianMixture

from decant.data.images import Images
from decant.detectors._background import middle_and_spread
from decant.detectors._groups import TwoGroups
from decant.detectors.base import Detection, DetectionCase
from decant.streams import child

MIN_ROWS = 10  # candidates, and background rows, below which two Gaussians or a spread mean nothing
MIN_SEPARATION = 2.5
MIN_HEIGHT = 9.0
MAX_REMAINDER = 0.2
CLEAR_SEPARATION = 5.0
MAX_CLEAR_REMAINDER = 0.4
MEASURE = "self-normalised influence on the affected points (-1 to 1)"


class InfluenceGroups(TwoGroups):
    """Two groups of candidates by self-normalised influence alone."""

    @property
    def is_real(self) -> bool:
        """Whether all three conditions hold."""
        allowed = MAX_CLEAR_REMAINDER if self.separation >= CLEAR_SEPARATION else MAX_REMAINDER
        return self.separation >= MIN_SEPARATION and self.height >= MIN_HEIGHT and self.remainder <= allowed


def judge(case: DetectionCase, points: Images) -> Detection:
    return decide(case, points, influence_of(case, points))


def influence_of(case: DetectionCase, points: Images) -> Float[np.ndarray, " n"]:
    """r of every training row."""
    return case.cosines(points).mean(0)


def decide(case: DetectionCase, points: Images, r: Float[np.ndarray, " n"]) -> Detection:
    """The detection that follows from r of every training row."""
    label = int(points.labels[0])
    candidates, others = case.candidates(label), case.train.labels != label
    if min(candidates.sum(), others.sum()) < MIN_ROWS:
        name = case.class_of(points)
        note = (
            f"nothing found: too few rows to compare, {candidates.sum()} candidates for {name}, {others.sum()} others"
        )
        return Detection.nothing(r, note, MEASURE)
    groups = split_in_two(r[candidates], r[others], seed=case.seed)
    if not groups.is_real:
        why = f"nothing found: no group of rows stands apart for {case.count_of(points)} ({groups.figures})"
        return Detection.nothing(r, why, MEASURE)
    return groups.detection(case, points, candidates, r, MEASURE)


def split_in_two(
    r: Float[np.ndarray, " candidates"], background: Float[np.ndarray, " others"], *, seed: int
) -> InfluenceGroups:
    """Two Gaussians fitted to r of the candidates, compared with r of the background."""
    if np.ptp(r) == 0:  # all rows alike: no mixture can be fitted
        return InfluenceGroups(upper=np.zeros(len(r)), separation=0.0, height=0.0, remainder=1.0)
    column = r.astype(np.float64)[:, None]
    mixture = GaussianMixture(2, n_init=3, random_state=child(seed, "renormalised", "mixture")).fit(column)
    low, high = mixture.means_[:, 0].argsort()
    means, variances = mixture.means_[:, 0], mixture.covariances_[:, 0, 0]
    middle, spread = middle_and_spread(background)
    rise = max(float(means[high]) - middle, 1e-12)
    # A wide upper Gaussian reaches below the lower one's mean; rows there are not suspicious.
    upper = np.where(r > means[low], mixture.predict_proba(column)[:, high], 0)
    return InfluenceGroups(
        upper=upper,
        separation=float((means[high] - means[low]) / np.sqrt(variances.mean())),
        height=rise / spread,
        remainder=(float(means[low]) - middle) / rise,
    )
