"""The background of a detection: the scores of rows with other labels than the predicted one.

These rows have no common cause.

Symbols:  m, s  median and spread of the background's scores
"""

import numpy as np
from jaxtyping import Float

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase

QUANTILE = 0.999  # of the background's scores that lie below a threshold; fixed in advance


def middle_and_spread(background: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Median m, and spread s = 1.4826 · median |score - m|, which is a Gaussian's σ.

    Medians, because rows poisoned for another label are background, too, and must not widen it.
    """
    middle = float(np.median(background))
    return middle, 1.4826 * float(np.median(np.abs(background - middle))) + 1e-12


def above_background(case: DetectionCase, points: Images, scores: Float[np.ndarray, " n"], what: str) -> Detection:
    """Flags the candidates whose scores are above those of all but 0.1 % of the background.

    The scores of the detection are (score - m) / s. `what`: what the given scores are, for `Detection.measure`.
    """
    others, measure = case.train.labels != points.labels[0], f"{what}, in spreads of the rows with other labels"
    if not others.any():
        return Detection.nothing(
            np.zeros(len(scores)), f"no rows but {case.class_of(points)}: nothing to compare", measure
        )
    middle, spread = middle_and_spread(scores[others])
    passing = scores > np.quantile(scores[others], QUANTILE)
    said = f"are above {QUANTILE:.1%} of those with other labels, for {case.count_of(points)}"
    return case.flagging(passing, points, scores=(scores - middle) / spread, said=said, measure=measure)
