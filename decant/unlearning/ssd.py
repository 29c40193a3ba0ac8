"""Selective synaptic dampening: shrink the weights that matter far more to the flagged rows than to all.

Foster et al., "Fast machine unlearning without retraining through selective synaptic dampening", AAAI 2024
(arXiv 2308.07707). With I the diagonal of the Fisher information (mean squared gradient of a batch, as in their code):

    w <- min(1, lambda I_all / I_flagged) w        where I_flagged > alpha I_all

No training, so it is fast; but nothing holds the other rows' accuracy, and the right alpha differs from net to net.

Cost: one pass over the rows, forwards and backwards.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from decant.data.images import concat_images
from decant.settings import Block
from decant.unlearning._dampening import importances, shrunk
from decant.unlearning.base import Task


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    alpha: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """How many times more a weight must matter to the flagged rows; the paper's."""
    lam: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """lambda; the paper's."""


def unlearn(task: Task, settings: Settings) -> nn.Module:
    to_flagged = importances(task.model, task.flagged, 2)
    to_all = importances(task.model, concat_images([task.kept, task.flagged]), 2)
    factors = [
        (settings.lam * whole / flagged.clamp_min(1e-30)).clamp(max=1).where(flagged > settings.alpha * whole, 1.0)
        for flagged, whole in zip(to_flagged, to_all, strict=True)
    ]
    return shrunk(task.model, factors)
