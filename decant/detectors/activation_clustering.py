"""Activation clustering (Chen et al., SafeAI 2019), restricted to the cluster in which the affected points lie.

Rows that carry a class's label for different reasons fall into two clusters of activations, and the smaller one is
taken for poisoned. The clusters are those of `decant.models.features.two_clusters`, as in the label check of the same
name.

    a_i = d_large / (d_large + d_small)

Symbols:  d_large, d_small  distances of row i's activations from the centres of its class's larger and smaller cluster

What we changed: nothing is flagged where the affected points themselves don't lie nearer to the smaller cluster of the
predicted class, or where that is not markedly smaller (ART's default). Reduction by PCA, as in ART. The paper knows no
affected points and flags every class's smaller cluster; `same_label: false` is close to it.

Cost: one forward pass, and a k-means per class.
"""

import numpy as np
from jaxtyping import Float

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase
from decant.models.features import two_clusters
from decant.streams import child

DIMENSIONS = 10
SMALLER = 0.35  # the largest share of its class that a cluster may have, to be taken for poisoned (ART's default)
MIN_ROWS = 10  # of a class, to be divided
MEASURE = "nearness to the smaller of two clusters of its class (0 to 1)"


def judge(case: DetectionCase, points: Images) -> Detection:
    scores, passing, close = np.zeros(len(case.train)), np.zeros(len(case.train), bool), False
    for label in np.unique(case.train.labels):
        rows = np.flatnonzero(case.train.labels == label)
        if len(rows) < MIN_ROWS:
            continue
        seed = child(case.seed, "activation clustering", int(label))
        distances = two_clusters(case.features[rows], DIMENSIONS, seed=seed)
        scores[rows] = nearness(distances(case.features[rows]))
        passing[rows] = scores[rows] > 0.5
        if passing[rows].mean() > SMALLER:
            passing[rows] = False
        elif label == points.labels[0]:
            close = bool(np.median(nearness(distances(case.features_of(points)))) > 0.5)
    name = case.class_of(points)
    if not close:
        return Detection.nothing(scores, f"nothing found: the points predicted {name} are in no small cluster", MEASURE)
    said = f"lie with {case.count_of(points)} in small clusters"
    return case.flagging(passing, points, scores=scores, said=said, measure=MEASURE)


def nearness(distances: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """d_large / (d_large + d_small) of the two distances."""
    return distances[:, 0] / np.maximum(distances.sum(1), 1e-12)
