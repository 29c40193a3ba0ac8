"""Bad teacher: on flagged rows answer like an untrained network, on kept rows like the trained one.

Chundawat et al., "Can bad teaching induce forgetting?", AAAI 2023 (arXiv 2205.08096). From the trained weights, on

    L = KL(f_trained(x) || f(x)) over kept rows + KL(f_random(x) || f(x)) over flagged rows

The trained teacher is right only about rows without a trigger: where kept rows carry one, it teaches the backdoor.

Cost: `share` of one training, three to four times per step (both teachers, twice the rows).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decant.models.networks import build
from decant.models.training import Batch, architecture_of, train_classifier
from decant.runtime import device
from decant.settings import Block, Fraction
from decant.unlearning._flagged import BesideFlagged, divergence, frozen
from decant.unlearning.base import Task
from decant.unlearning.finetune import shortened


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""


def unlearn(task: Task, settings: Settings) -> nn.Module:
    strategy = BadTeacher(task)
    train = shortened(task.train, settings.share)
    return train_classifier(task.kept, train, seed=task.seed, strategy=strategy, start=task.model)


class BadTeacher(BesideFlagged):
    def __init__(self, task: Task):
        super().__init__(task.flagged)
        self.good = task.model.to(device()).eval()
        self.bad = build(architecture_of(task.kept, task.train), seed=task.seed + 1).to(device()).eval()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        flagged = self.drawn(batch)
        kept_logits, flagged_logits = model(torch.cat([batch.inputs, flagged])).float().chunk(2)
        wanted, forgotten = frozen(self.good, batch.inputs), frozen(self.bad, flagged)
        return divergence(wanted, kept_logits) + divergence(forgotten, flagged_logits)
