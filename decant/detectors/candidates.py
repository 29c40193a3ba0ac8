"""Test predictions whose influence is concentrated on few training rows: candidates for affected points.

For users who know of no affected point. Hammoudeh & Lowd, CCS 2022 (arXiv 2201.10055, "FIT"): the prediction of an
attacked test point is supported by the attack's few rows and by no others, so the upper tail of its self-normalised
influence is heavy. The prediction of an ordinary image is supported by its whole class.

    r_i = s_qi / (√u_q √u_i)  over the rows i that carry the label predicted for q    (`decant.detectors.renormalised`)
    concentration(q) = (mean of the TAIL largest r - m) / s

Where a fitted LabelTrust scorer is given, it judges the prediction by the picture alone (`decant.labeltrust.scorer`):

    suspicion(q) = concentration(q) · distrust(q)

Symbols:  q  a test image with the label that the model predicts for it        m, s  median and spread of the same r
          distrust = 1 - trust of LabelTrust in that label

What we changed: only rows with the predicted label count, since no other can have taught it. The paper takes the tail
among all rows, in which the class of an ordinary prediction is a tail as well: it found next to nothing on the digits
on which we tried both. The tail's length is fixed in advance. The result is a ranking for people to look at, not a
verdict: an image that the model got wrong by itself may rank high, and data without poison has a first candidate, too.
Where poison makes up half of a class it is no tail any more, and isn't found.

Cost: EK-FAC's two passes over the rows, and influence on q queries (`decant.influence.functions`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import nn

from decant.data.images import Images
from decant.detectors._background import middle_and_spread
from decant.detectors.base import DetectionCase
from decant.detectors.settings import DetectSettings
from decant.models.training import predict

if TYPE_CHECKING:
    from decant.labeltrust.scorer import TrustScorer

TAIL = 20  # rows: about as few as teach a network anything


@dataclass(frozen=True)
class Candidates:
    """How suspicious the predictions of q images are. All scores: higher is more suspicious."""

    predicted: Int[np.ndarray, " q"]
    """The model's own labels."""
    concentration: Float[np.ndarray, " q"]
    """At least 0, in spreads: see above."""
    distrust: Float[np.ndarray, " q"] | None
    """1 - trust in the prediction, in [0, 1]; None without a scorer."""
    suspicion: Float[np.ndarray, " q"]
    """At least 0."""

    @property
    def order(self) -> Int[np.ndarray, " q"]:
        """Indices of the images, the most suspicious first."""
        return np.argsort(-self.suspicion, kind="stable")


def rank(
    model: nn.Module,
    train: Images,
    pixels: UInt8[np.ndarray, "q h w c"],
    settings: DetectSettings,
    *,
    seed: int,
    scorer: "TrustScorer | None" = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    cache: Path | None = None,
) -> Candidates:
    """How suspicious the model's predictions of the pixels are, given the rows it was trained on.

    cache: as in `decant.detectors.detect.detect`.
    """
    predicted = predict(model, pixels).argmax(1)
    images = Images(np.arange(len(pixels)), pixels, predicted.astype(np.int32), train.info)
    case = DetectionCase(model=model, train=train, settings=settings, seed=seed, on_rows=on_rows, cache=cache)
    own = [row[train.labels == label] for row, label in zip(case.cosines(images), predicted, strict=True)]
    concentration = np.array([tail(r) for r in own], np.float32)
    if scorer is None:
        return Candidates(predicted, concentration, None, concentration)
    trust = scorer.judge(scorer.class_scores(pixels), predicted, prior="uniform").trust
    distrust = 1 - np.nan_to_num(trust, nan=0.5).astype(np.float32)  # a class without references: nothing is known
    return Candidates(predicted, concentration, distrust, concentration * distrust)


def tail(r: Float[np.ndarray, " n"]) -> float:
    """How far the mean of the TAIL largest r lies above their median, in spreads; 0 where there are too few."""
    if len(r) < 2 * TAIL:
        return 0.0
    middle, spread = middle_and_spread(r)
    return max(0.0, (float(np.sort(r)[-TAIL:].mean()) - middle) / spread)
