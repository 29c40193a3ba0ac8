"""The rows with other labels than the predicted one: what scores look like where there is no common cause."""

import numpy as np

from decant.data.images import Images
from decant.detectors.base import Case, Detection

QUANTILE = 0.999  # of the background, that a threshold must lie above; fixed in advance


def middle_and_spread(background: np.ndarray) -> tuple[float, float]:
    """Median, and the median's deviation in units of a Gaussian's sigma.

    Rows poisoned for another label are background, too, and must not widen it.
    """
    middle = float(np.median(background))
    return middle, 1.4826 * float(np.median(np.abs(background - middle))) + 1e-12


def above_background(case: Case, points: Images, scores: np.ndarray, what: str) -> Detection:
    """Flags the candidates whose scores (n,) are above those of all but 0.1 % of the background.

    The scores that are shown count from the background's middle, in its spreads.
    """
    others, measure = case.train.labels != points.labels[0], f"{what}, in spreads of the rows with other labels"
    if not others.any():
        return Detection.nothing(
            np.zeros(len(scores)), f"no rows but {case.name_of(points)}: nothing to compare", measure
        )
    middle, spread = middle_and_spread(scores[others])
    passing = scores > np.quantile(scores[others], QUANTILE)
    said = f"are above {QUANTILE:.1%} of those with other labels, for {case.said_of(points)}"
    return case.flagging(passing, points, scores=(scores - middle) / spread, said=said, measure=measure)
