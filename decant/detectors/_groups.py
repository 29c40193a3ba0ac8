"""Two groups of candidates, found by a mixture of two Gaussians, and the detection that flags the upper one.

    separation  distance of the two means in units of their common deviation
    height      (μ₁ - m) / s              of the upper mean above the background's median, in the background's spreads
    remainder   (μ₀ - m) / (μ₁ - m)       how much of that height the lower mean has

Symbols:  μ₀, μ₁  mean influence of the lower and of the upper group       m, s  the background: `_background`
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase


@dataclass(frozen=True)
class TwoGroups:
    """Membership of every candidate in the group of higher influence, and how far apart the two groups are."""

    upper: Float[np.ndarray, " candidates"]
    """Probability of belonging to the upper group."""
    separation: float
    height: float
    remainder: float

    @property
    def is_upper(self) -> Bool[np.ndarray, " candidates"]:
        """The candidates that more likely belong to the upper group."""
        return self.upper > 0.5

    @property
    def figures(self) -> str:
        """The three figures in words, for notes."""
        return f"separation {self.separation:.1f}, height {self.height:.1f}, remainder {self.remainder:.2f}"

    def detection(
        self,
        case: DetectionCase,
        points: Images,
        candidates: Bool[np.ndarray, " n"],
        scores: Float[np.ndarray, " n"],
        measure: str,
    ) -> Detection:
        """Flags the upper group of the candidates, whose two groups these are."""
        flagged = np.zeros(len(scores), bool)
        flagged[candidates] = self.is_upper
        return Detection(
            scores=scores.astype(np.float32),
            flagged=flagged,
            note=f"{flagged.sum()} rows stand apart as the cause of {case.count_of(points)} ({self.figures})",
            measure=measure,
            false_alarms=float((1 - self.upper[self.is_upper]).sum()),
        )
