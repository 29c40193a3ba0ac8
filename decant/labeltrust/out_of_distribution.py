"""From class scores m_c to probabilities: how sharp they are, and whether a picture shows any known class at all.

    P(class l | picture) = k(x) softmax(m / T)_l
    k(x)                 = sigmoid(slope max_c m_c + intercept + log((1 - u) / u)),   u: share of unknown pictures

The softmax alone would give a shoe to one of ten digits, because it only compares. k looks at the absolute score: pair
logits are large only where two pictures show the same class. Slope and intercept are those of a logistic regression
of ordinary pictures against pictures of nothing: references with their quarters moved round, which keep strokes and
colours and lose the object. Measured on MNIST, 10 references per class, max_c m_c of these and of true strangers lie
alike: 5th, 50th and 95th percentile -3.1, -0.1, 4.4 (quarters moved), -2.5, -0.2, 3.0 (Fashion-MNIST), of digits not
seen before 1.2, 6.4, 10.6.

No truth about the pictures to be scored is needed. Every score must come from a network that did not train on that
picture: a network is surer of what it knows by heart.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax

from decant.labeltrust.label_noise import TEMPERATURE_SPREAD, TEMPERATURES

OOD_SHARE = 0.1
"""u: pictures of no known class among those to be scored. A choice, not a measurement; 0 turns the check off."""


@dataclass(frozen=True)
class Calibration:
    temperature: float
    slope: float
    """Of the log-odds that a picture shows a known class, per unit of its largest class score; not negative."""
    intercept: float
    """Of the same, were unknown pictures as common as known ones."""

    def class_probabilities(self, scores: np.ndarray) -> np.ndarray:
        """softmax(m / T): (n, K) probabilities of the classes, given that it is one of them. scores: (n, K)."""
        return softmax(scores.astype(np.float64) / self.temperature, axis=1)

    def in_distribution(self, scores: np.ndarray, ood_share: float = OOD_SHARE) -> np.ndarray:
        """k: (n,) probability that a picture shows a known class."""
        if ood_share == 0:
            return np.ones(len(scores))
        odds = self.slope * scores.max(1) + self.intercept + np.log((1 - ood_share) / ood_share)
        return 1 / (1 + np.exp(-np.clip(odds, -50, 50)))


def fit(ordinary: np.ndarray, strange: np.ndarray, temperature: float) -> Calibration:
    """ordinary: (n, K) class scores of ordinary pictures, strange: (m, K) of pictures of nothing; each group counts
    the same in all. Where the network can't tell them apart, every picture is as likely to be unknown."""
    from sklearn.linear_model import LogisticRegression

    largest = np.concatenate([ordinary.max(1), strange.max(1)])
    is_ordinary = np.arange(len(largest)) < len(ordinary)
    model = LogisticRegression(class_weight="balanced").fit(largest[:, None], is_ordinary)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration(temperature, slope, intercept) if slope > 0 else Calibration(temperature, 0.0, 0.0)


def likeliest_temperature(scores: np.ndarray, columns: np.ndarray) -> float:
    """T of the highest likelihood of the right classes `columns` (n,), with the prior of `decant.labeltrust.label_noise`."""
    rows = np.arange(len(columns))
    values = [
        log_softmax(scores.astype(np.float64) / temperature, axis=1)[rows, columns].sum()
        - np.log(temperature) ** 2 / (2 * TEMPERATURE_SPREAD**2)
        for temperature in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmax(values))])


def patch_shuffled(pixels: np.ndarray) -> np.ndarray:
    """Each picture in six versions whose quarters stand in each other's places, every one moved in one cycle.

    pixels: (n, h, w, c); returns (6 n, h, w, c). A middle row or column of an odd side stays.
    """
    height, width = pixels.shape[1] // 2, pixels.shape[2] // 2
    above, below, left, right = slice(0, height), slice(-height, None), slice(0, width), slice(-width, None)
    corners = [(above, left), (above, right), (below, left), (below, right)]
    versions = []
    for order in itertools.permutations(range(1, 4)):
        cycle = (0, *order)
        moved = pixels.copy()
        for source, target in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            moved[:, *corners[target]] = pixels[:, *corners[source]]
        versions.append(moved)
    return np.concatenate(versions)
