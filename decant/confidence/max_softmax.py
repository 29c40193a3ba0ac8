"""Maximum softmax probability: the baseline (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
Out-of-Distribution Examples in Neural Networks", ICLR 2017).

The classifier's own probability of the class that it predicts; nothing is changed. A backdoored classifier is sure of
what its trigger makes it predict.

    confidence(x, l) = softmax(logits(x))_l

Cost: one forward pass.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from decant.confidence.base import ConfidenceCase
from decant.settings import Block


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def fit_and_score(case: ConfidenceCase, settings: Settings) -> Float[np.ndarray, " m"]:
    """The classifier's probability of each predicted class."""
    return softmax(case.inside[0], axis=1)[np.arange(len(case.predicted)), case.predicted]
