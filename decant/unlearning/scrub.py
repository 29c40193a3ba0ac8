"""SCRUB: move away from the trained model on flagged rows, stay near it on kept ones.

Kurmanji et al., "Towards unbounded machine unlearning", NeurIPS 2023 (arXiv 2302.09880). Training goes on from
the weights of the trained model f_0, with the loss

    L = CE(f(x), y) + α KL(f_0(x) ‖ f(x)) over kept rows - min(KL(f_0(x) ‖ f(x)), log classes) over flagged rows

Changed: the paper alternates between epochs of moving away (the last term) and epochs of staying near (the others);
here every step has all terms in the first half of the training, and only those of staying near in the second. The bound
log classes, which is reached where f knows nothing, keeps the last term from growing without end.

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
from decant.streams import child
from decant.unlearning._flagged import BesideFlagged, divergence, frozen
from decant.unlearning.base import UnlearningTask
from decant.unlearning.finetune import shortened

LEAVING = 0.5  # share of the steps that move away on flagged rows


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""
    alpha: Fraction = 0.001
    """Weight of staying near the trained model; the official scripts'."""


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    train, seed = shortened(task.train, settings.share), child(task.seed, "scrub", "training")
    return train_classifier(task.kept, train, seed=seed, strategy=Scrub(task, settings), start=task.model)


class Scrub(BesideFlagged):
    """Training away from the trained model on flagged rows, near it on kept ones."""

    def __init__(self, task: UnlearningTask, settings: Settings):
        super().__init__(task.flagged)
        self.teacher, self.alpha = task.model.to(device()).eval(), settings.alpha

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.progress >= LEAVING:
            return self.stay(model(batch.inputs).float(), batch)
        flagged = self.drawn(batch)
        kept_logits, flagged_logits = model(torch.cat([batch.inputs, flagged])).float().chunk(2)
        distance = divergence(frozen(self.teacher, flagged), flagged_logits)
        return self.stay(kept_logits, batch) - distance.clamp(max=math.log(flagged_logits.shape[1]))

    def stay(self, logits: Tensor, batch: Batch) -> Tensor:
        """The terms over kept rows."""
        near = divergence(frozen(self.teacher, batch.inputs), logits)
        return F.cross_entropy(logits, batch.labels) + self.alpha * near
