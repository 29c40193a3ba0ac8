"""Two groups that a mixture has found among the candidates, and the detection that follows where they are believed."""

from dataclasses import dataclass

import numpy as np

from decant.data.images import Images
from decant.detectors.base import Case, Detection


@dataclass(frozen=True)
class TwoGroups:
    """The upper group is that of higher influence; the rest says how far the two can be believed."""

    upper: np.ndarray  # (n,) float, probability of each candidate to belong to it
    separation: float
    height: float
    remainder: float

    @property
    def figures(self) -> str:
        return f"separation {self.separation:.1f}, height {self.height:.1f}, remainder {self.remainder:.2f}"

    def detection(
        self, case: Case, points: Images, candidates: np.ndarray, scores: np.ndarray, measure: str
    ) -> Detection:
        """Flags the candidates (n,) bool, whose split this is, that more likely belong to the upper group."""
        flagged = np.zeros(len(scores), bool)
        flagged[candidates] = self.upper > 0.5
        return Detection(
            scores=scores.astype(np.float32),
            flagged=flagged,
            note=f"{flagged.sum()} rows stand apart as the cause of {case.said_of(points)} ({self.figures})",
            measure=measure,
            false_alarms=float((1 - self.upper[self.upper > 0.5]).sum()),
        )
