"""Candidates for affected points, where a user knows of none: predictions that owe themselves to a few training rows.

Hammoudeh & Lowd, CCS 2022 (arXiv 2201.10055, "FIT"): what an attack makes of a test point leans on the attack's few
rows and on no others, so the upper tail of its renormalised influence is heavy. The prediction of an ordinary image
leans on its whole class.

    r_i = s_qi / (√u_q √u_i)  over the rows i that carry the label predicted for q    (`decant.detectors.renormalised`)
    concentration(q) = (mean of the TAIL largest r - m) / s,     median m and spread s of the same r

Where a fitted LabelTrust is at hand, it judges the prediction by the picture alone (`decant.labeltrust.scorer`), and

    suspicion(q) = concentration(q) · distrust(q)

What we changed: only rows with the predicted label count, since no other can have taught it. The paper takes the tail
among all rows, where the class of an ordinary prediction is a tail, too: it found next to nothing on the digits on
which we tried both. The tail's length is fixed in advance. The result is a ranking for people to look at, not a
verdict: a picture that the model got wrong by itself may stand high, and data without poison has a first candidate,
too. Where poison makes up half of a class it is no tail any more, and isn't found.

Cost: EK-FAC's two passes over the rows, and influence on n queries (`decant.influence.functions`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from decant.data.images import Images
from decant.detectors._background import middle_and_spread
from decant.detectors.base import Case
from decant.detectors.settings import DetectSettings
from decant.models.training import predict, to_device

if TYPE_CHECKING:
    from decant.labeltrust.scorer import TrustScorer

TAIL = 20  # rows: about as few as teach a network anything


@dataclass(frozen=True)
class Candidates:
    """How suspicious the predictions of n images are. All scores: higher is more suspicious."""

    predicted: np.ndarray  # (n,) int64: the model's own labels
    concentration: np.ndarray  # (n,) float32, >= 0: see above
    distrust: np.ndarray | None  # (n,) float32 in [0, 1]: 1 - trust in the prediction; None without a scorer
    suspicion: np.ndarray  # (n,) float32, >= 0

    @property
    def order(self) -> np.ndarray:
        """(n,) row numbers, the most suspicious first."""
        return np.argsort(-self.suspicion, kind="stable")


def rank(
    model: nn.Module,
    train: Images,
    pixels: np.ndarray,
    settings: DetectSettings,
    *,
    seed: int,
    scorer: "TrustScorer | None" = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    cache: Path | None = None,
) -> Candidates:
    """How suspicious the model's predictions of pixels (n, h, w, c) uint8 are, given the rows it was trained on.

    cache: as in `decant.detectors.detect`.
    """
    predicted = predict(model, pixels).argmax(1)
    case = Case(model=model, train=train, settings=settings, seed=seed, on_rows=on_rows, cache=cache)
    r = case.influence_on((to_device(pixels), torch.from_numpy(predicted)), self_influence=True).cosine().cpu().numpy()
    concentration = np.array([tail(row[train.labels == label]) for row, label in zip(r, predicted, strict=True)], "f4")
    if scorer is None:
        return Candidates(predicted, concentration, None, concentration)
    trust = scorer.judge(scorer.class_scores(pixels), predicted, prior="uniform").trust
    distrust = 1 - np.nan_to_num(trust, nan=0.5).astype(np.float32)  # a class without references: nothing is known
    return Candidates(predicted, concentration, distrust, concentration * distrust)


def tail(r: np.ndarray) -> float:
    """How far the TAIL largest of r (m,) lie above its median, in spreads; 0 where there are too few."""
    if len(r) < 2 * TAIL:
        return 0.0
    middle, spread = middle_and_spread(r)
    return max(0.0, (float(np.sort(r)[-TAIL:].mean()) - middle) / spread)
