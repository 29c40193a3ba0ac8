"""Selective synaptic dampening: shrink the weights that matter far more to the flagged rows than to all.

Foster et al., "Fast machine unlearning without retraining through selective synaptic dampening", AAAI 2024
(arXiv 2308.07707).

    w ← min(1, λ I_all / I_flagged) w        where I_flagged > α I_all

Symbols:  w  a weight        I  diagonal of the Fisher information: mean squared gradient of a batch, as in their code

No training, so it is fast; but nothing preserves the other rows' accuracy, and the right α differs from network to
network.

Cost: one pass over the rows, forwards and backwards.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from decant.data.images import concat_images
from decant.settings import Block
from decant.unlearning._dampening import importances, shrunk
from decant.unlearning.base import UnlearningTask


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    alpha: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """α: how many times more a weight must matter to the flagged rows; the paper's."""
    lam: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """λ; the paper's."""


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    to_flagged = importances(task.model, task.flagged, 2)
    to_all = importances(task.model, concat_images([task.kept, task.flagged]), 2)
    factors = [
        (settings.lam * whole / flagged.clamp_min(1e-30)).clamp(max=1).where(flagged > settings.alpha * whole, 1.0)
        for flagged, whole in zip(to_flagged, to_all, strict=True)
    ]
    return shrunk(task.model, factors)
