"""Spectral signatures (Tran, Li, Madry, NeurIPS 2018), used only where the affected points carry the signature too.

A backdoor leaves a strong common direction in the features of the class that its rows were given to; the rows furthest
out along that class's first singular vector are removed (`decant.models.features.spectral_signature`, as in the label
check of the same name).

    a_i = ⟨f(i) - f̄_l, v_l⟩² / mean over class l of the same        flag the 1.5 ε n_l largest of a class

Symbols:  f(i) features of row i, f̄_l their mean over class l, v_l the first right singular vector of f - f̄_l there
          n_l rows of class l, ε  the share of poisoned rows that is expected, here a fixed 0.1

Tran's definition, per class. (The code of Δ-Influence does something else under the name: a norm along all strong
directions of the uncentred features of all classes together.) What we changed: nothing is flagged where the affected
points themselves don't lie as far out in the predicted class. A third of what is flagged is innocent by construction.

Cost: one forward pass, and a small eigendecomposition per class.
"""

from dataclasses import replace

import numpy as np

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase
from decant.models.features import spectral_signature

SHARE = 0.1  # of poisoned rows in a class: ε, which the paper assumes to be known
MULTIPLIER = 1.5
MEASURE = "squared projection on the first direction of its class, in class means"


def judge(case: DetectionCase, points: Images) -> Detection:
    scores, passing, far = np.zeros(len(case.train)), np.zeros(len(case.train), bool), False
    for label in np.unique(case.train.labels):
        rows = np.flatnonzero(case.train.labels == label)
        projection = spectral_signature(case.features[rows])
        raw = projection(case.features[rows])
        scores[rows] = raw / max(float(raw.mean()), 1e-12)
        taken = np.argsort(-raw, kind="stable")[: round(MULTIPLIER * SHARE * len(rows))]
        passing[rows[taken]] = True
        if label == points.labels[0] and len(taken):
            theirs = projection(case.features_of(points))
            far = bool(np.median(theirs) >= raw[taken].min())
    name = case.class_of(points)
    if not far:
        return Detection.nothing(scores, f"nothing found: the points predicted {name} are not far out in it", MEASURE)
    said = f"are as far out as {case.count_of(points)}"
    found = case.flagging(passing, points, scores=scores, said=said, measure=MEASURE)
    return replace(found, false_alarms=float(found.flagged.sum() * (1 - 1 / MULTIPLIER)))
