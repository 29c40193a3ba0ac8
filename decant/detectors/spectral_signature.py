"""Spectral signatures (Tran, Li, Madry, NeurIPS 2018), asked about affected points.

A backdoor leaves a strong common direction in the features of the class that its rows were given to; the rows furthest
out along that class's first singular vector are removed. `decant.models.features.spectral_signature`, as in the label check.

    a_i = <f(i) - mean_l, v_l>^2 / mean over class l of the same,    v_l: first right singular vector of class l
    flag the 1.5 e n_l largest of a class,    e: share of poisoned rows that is expected, here a fixed 0.1

Tran's definition, per class. (The code of Δ-Influence does something else under the name: a norm along all strong
directions of the uncentred features of all classes together.) What we changed: nothing is flagged where the affected
points themselves don't lie as far out in the predicted class. A third of what is flagged is innocent by construction.

Cost: one forward pass, and a small eigendecomposition per class.
"""

from dataclasses import replace

import numpy as np

from decant.data.images import Images
from decant.detectors.base import Case, Detection
from decant.models.features import logits_and_features, spectral_signature

SHARE = 0.1  # of poisoned rows in a class: e in the paper, which must know it
MULTIPLIER = 1.5
MEASURE = "squared projection on the first direction of its class, in class means"


def judge(case: Case, points: Images) -> Detection:
    scores, passing, far = np.zeros(len(case.train)), np.zeros(len(case.train), bool), False
    for label in np.unique(case.train.labels):
        rows = np.flatnonzero(case.train.labels == label)
        projection = spectral_signature(case.features[rows])
        raw = projection(case.features[rows])
        scores[rows] = raw / max(float(raw.mean()), 1e-12)
        taken = np.argsort(-raw, kind="stable")[: round(MULTIPLIER * SHARE * len(rows))]
        passing[rows[taken]] = True
        if label == points.labels[0] and len(taken):
            theirs = projection(logits_and_features(case.model, points.pixels)[1])
            far = bool(np.median(theirs) >= raw[taken].min())
    name = case.name_of(points)
    if not far:
        return Detection.nothing(scores, f"nothing found: the points predicted {name} are not far out in it", MEASURE)
    said = f"are as far out as {case.said_of(points)}"
    found = case.flagging(passing, points, scores=scores, said=said, measure=MEASURE)
    return replace(found, false_alarms=float(found.flagged.sum() * (1 - 1 / MULTIPLIER)))
