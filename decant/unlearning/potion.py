"""Potion-style repair for poison found in part: dampen more and more weights until the flagged rows are forgotten.

Schoepf et al., "Potion: towards poison unlearning", 2024 (arXiv 2406.09173). Retraining can't help where poison stays
among the kept rows: the trigger is learnt again. Dampening needs only some of the poison to find the weights that react
to the trigger. Two ideas of the paper's abstract, in an implementation of our own: importances that outliers among the
rows don't dominate (absolute gradients instead of squares), and a schedule that needs no count of the poison:

    r = I_flagged / I_kept,    w ← w / r  for the share p of weights with the largest r > 1

where p begins at `first` and grows by a quarter until at most `remembered` of the flagged rows are predicted as
labelled.

Symbols:  w  a weight        I_flagged, I_kept  its importance to these rows, the mean |∂L / ∂w| of a batch

Cost: one pass over the rows, forwards and backwards, and some over the flagged ones.
Expected (`python -m benchmarks unlearning`, digits and MNIST, seed 0): poison success at most 0.04 with half of the
poison found, where retraining leaves 0.97-1, and at most 0.03 with all of it, for at most 3 points of accuracy. Except
for MNIST's smooth trigger: 20 points, and 0.77 left with all of it found.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from decant.models.training import accuracy
from decant.settings import Block, Fraction
from decant.unlearning._dampening import importances, shrunk
from decant.unlearning.base import UnlearningTask

GROWTH = 1.25


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    first: Annotated[float, Field(ge=1e-6, le=1)] = 1e-3
    """Share of the weights that the schedule begins with; from 0 it would never grow."""
    remembered: Fraction = 0.02
    """Share of the flagged rows that may still be predicted as labelled."""


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    to_flagged, to_kept = (importances(task.model, rows, 1) for rows in (task.flagged, task.kept))
    ratios = [flagged / kept.clamp_min(1e-20) for flagged, kept in zip(to_flagged, to_kept, strict=True)]
    ranked = torch.cat([ratio.flatten() for ratio in ratios]).sort(descending=True).values
    share = settings.first
    while True:
        limit = ranked[min(round(share * len(ranked)), len(ranked) - 1)]
        model = shrunk(task.model, [(1 / ratio.clamp_min(1)).where(ratio > limit, 1.0) for ratio in ratios])
        if (accuracy(model, task.flagged) or 0.0) <= settings.remembered or share >= 1:
            return model
        share *= GROWTH
