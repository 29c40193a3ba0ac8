"""The classifier's own probability of what it predicts: the baseline of all (Hendrycks and Gimpel, ICLR 2017).

    confidence(x, l) = softmax(logits(x))_l

Cost: one forward pass. A backdoored classifier is sure of what its trigger makes it say.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from decant.confidence.base import ConfidenceCase
from decant.settings import Block


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def fit_and_score(case: ConfidenceCase, settings: Settings) -> np.ndarray:
    return softmax(case.inside[0], axis=1)[np.arange(len(case.predicted)), case.predicted]
