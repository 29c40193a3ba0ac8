"""SCRUB: move away from the trained model on flagged rows, stay near it on kept ones.

Kurmanji et al., "Towards unbounded machine unlearning", NeurIPS 2023 (arXiv 2302.09880). From the weights f_0, on

    L = CE(f(x), y) + alpha KL(f_0(x) || f(x)) over kept rows - min(KL(f_0(x) || f(x)), log classes) over flagged rows

Changed: the paper takes turns, an epoch of leaving and one of staying; here every step does both in the first half, and
only stays in the second. The bound (a model that knows nothing) keeps the second term from running away.

Cost: `share` of one training, about three times per step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.models.training import Batch, train_classifier
from decant.runtime import device
from decant.settings import Block, Fraction
from decant.unlearning._flagged import BesideFlagged, divergence, frozen
from decant.unlearning.base import Task
from decant.unlearning.finetune import shortened

LEAVING = 0.5  # share of the steps


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""
    alpha: Fraction = 0.001
    """Weight of staying near the trained model; the official scripts'."""


def unlearn(task: Task, settings: Settings) -> nn.Module:
    train = shortened(task.train, settings.share)
    return train_classifier(task.kept, train, seed=task.seed, strategy=Scrub(task, settings), start=task.model)


class Scrub(BesideFlagged):
    def __init__(self, task: Task, settings: Settings):
        super().__init__(task.flagged)
        self.teacher, self.alpha = task.model.to(device()).eval(), settings.alpha

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.progress >= LEAVING:
            return self.stay(model(batch.inputs).float(), batch)
        flagged = self.drawn(batch)
        kept_logits, flagged_logits = model(torch.cat([batch.inputs, flagged])).float().chunk(2)
        left = divergence(frozen(self.teacher, flagged), flagged_logits)
        return self.stay(kept_logits, batch) - left.clamp(max=math.log(flagged_logits.shape[1]))

    def stay(self, logits: Tensor, batch: Batch) -> Tensor:
        near = divergence(frozen(self.teacher, batch.inputs), logits)
        return F.cross_entropy(logits, batch.labels) + self.alpha * near
