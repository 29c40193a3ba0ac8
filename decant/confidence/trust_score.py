"""Trust Score (Jiang, Kim, Guan, Gupta, "To Trust Or Not To Trust A Classifier", NeurIPS 2018).

A prediction is trustworthy if the training rows of the predicted class are nearer than those of any other.

    r(x, l) = min over classes c != l of d(x, H_c) / (d(x, H_l) + 1e-12),    confidence = r / (1 + r)

H_c are the rows with label c but for the share `alpha` with the furthest k-th neighbour within the class (the density
filter). The distance is Euclidean, by the classifier's features, which the paper found best, or by pixels. A class
without rows is infinitely far. Changed: exact search on the device instead of a KD-tree, which is slow in many
dimensions; r / (1 + r) brings the ratio into [0, 1] and keeps the order.

Cost: the distances within each class, and of every picture to every training row.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from decant.confidence.base import ConfidenceCase
from decant.models.features import nearest
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    k: Positive = 10
    """Neighbour by which the density filter measures a row's density."""
    alpha: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of every class's rows that the density filter leaves out."""
    space: Literal["features", "pixels"] = "features"


def fit_and_score(case: ConfidenceCase, settings: Settings) -> Float[np.ndarray, " m"]:
    """Trust scores of the predictions, by distances to the training rows of each class."""
    if settings.space == "features":
        known, asked = case.inside_train[1], case.inside[1]
    else:
        known, asked = (
            pixels.reshape(len(pixels), -1) / np.float32(255) for pixels in (case.train.pixels, case.pixels)
        )
    labels = case.known.labels
    distances = np.full((len(asked), case.train.classes), np.inf)
    for label in np.unique(labels):
        dense = high_density(known[labels == label], settings.k, settings.alpha)
        distances[:, label] = nearest(asked, dense, 1)[0][:, 0]
    return trust(distances, case.predicted)


def high_density(rows: Float[np.ndarray, "n d"], k: int, alpha: float) -> Float[np.ndarray, "kept d"]:
    """H_c: the rows of one class without the share `alpha` with the furthest k-th neighbour."""
    if alpha == 0 or len(rows) <= 2:
        return rows
    radius = nearest(rows, rows, min(k, len(rows) - 1), itself=True)[0][:, -1]
    return rows[np.sort(np.argsort(radius, kind="stable")[: max(1, round((1 - alpha) * len(rows)))])]


def trust(distances: Float[np.ndarray, "m classes"], predicted: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """r / (1 + r) for the distances of each picture to H_c of each class c."""
    rows = np.arange(len(predicted))
    own = distances[rows, predicted]
    others = distances.copy()
    others[rows, predicted] = np.inf
    other = others.min(1)
    ratio = np.divide(other, other + own + 1e-12, out=np.ones(len(own)), where=np.isfinite(other))  # 1: no other class
    return np.where(np.isfinite(own), ratio, 0.0)
