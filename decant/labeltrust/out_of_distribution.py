"""From class scores m_c to probabilities: temperature scaling, and detection of out-of-distribution pictures.

    P(class l | picture) = k(x) softmax(m / T)_l
    k(x) = P(in distribution | x) = sigmoid(slope max_c m_c + intercept - logit(u)),   u: out-of-distribution share

The softmax alone compares the classes and would give a shoe to one of ten digits. k takes the largest score as it is:
pair logits are large only where two pictures show the same class. Slope and intercept are a logistic regression of
ordinary pictures against patch-shuffled references, which keep strokes and colours and lose the object.

Measured on MNIST with 10 references per class, 5th, 50th and 95th percentile of max_c m_c: patch-shuffled digits -3.1,
-0.1, 4.4, which is like true out-of-distribution pictures (Fashion-MNIST: -2.5, -0.2, 3.0); unseen digits 1.2, 6.4,
10.6.

No truth about the pictures to be scored is needed. The scores that a calibration is fitted to must come from networks
that did not train on those pictures: a network is surer of its training rows.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import expit, log_softmax, logit, softmax

from decant.labeltrust.label_noise import TEMPERATURES, temperature_log_prior

OOD_SHARE = 0.1
"""u: assumed share of out-of-distribution pictures among those to be scored. A choice, not a measurement; 0 turns the
detection off."""


@dataclass(frozen=True)
class Calibration:
    """Turns class scores into probabilities."""

    temperature: float
    slope: float
    """Of the log-odds that a picture is in distribution, per unit of its largest class score; not negative."""
    intercept: float
    """Of the same log-odds at u = 1/2."""

    def class_probabilities(self, scores: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """softmax(m / T): probability of each class, given that the picture shows one of them."""
        return softmax(scores.astype(np.float64) / self.temperature, axis=1)

    def in_distribution(
        self, scores: Float[np.ndarray, "n classes"], ood_share: float = OOD_SHARE
    ) -> Float[np.ndarray, " n"]:
        """k: probability that a picture shows one of the classes."""
        if ood_share == 0:
            return np.ones(len(scores))
        return expit(self.slope * scores.max(1) + self.intercept - logit(ood_share))


def fit(
    ordinary: Float[np.ndarray, "n classes"], shuffled: Float[np.ndarray, "m classes"], temperature: float
) -> Calibration:
    """Fit k to the class scores of ordinary and of patch-shuffled pictures; both groups have the same total weight.

    Where the scores don't separate them, slope and intercept are 0: every picture is as likely out of distribution.
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes seconds

    largest = np.concatenate([ordinary.max(1), shuffled.max(1)])
    is_ordinary = np.arange(len(largest)) < len(ordinary)
    model = LogisticRegression(class_weight="balanced").fit(largest[:, None], is_ordinary)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration(temperature, slope, intercept) if slope > 0 else Calibration(temperature, 0.0, 0.0)


def fit_temperature(scores: Float[np.ndarray, "n classes"], columns: Int[np.ndarray, " n"]) -> float:
    """T by temperature scaling on right labels: the most likely of TEMPERATURES, with its prior.

    columns: the right class of each row, as a column of the scores.
    """
    rows = np.arange(len(columns))
    log_posteriors = [
        log_softmax(scores.astype(np.float64) / temperature, axis=1)[rows, columns].sum()
        + temperature_log_prior(temperature)
        for temperature in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmax(log_posteriors))])


def patch_shuffled(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "6*n h w c"]:
    """Six versions of each picture with its quarters permuted in a 4-cycle, so that none stays in place.

    The middle row or column of an odd side stays.
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
