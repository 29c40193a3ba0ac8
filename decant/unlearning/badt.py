"""Bad teacher: imitate an untrained network on flagged rows, the trained one on kept rows.

Chundawat et al., "Can bad teaching induce forgetting?", AAAI 2023 (arXiv 2205.08096). Training goes on from the trained
weights, with the loss

    L = KL(f_trained(x) ‖ f(x)) over kept rows + KL(f_random(x) ‖ f(x)) over flagged rows

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
from decant.streams import child
from decant.unlearning._flagged import BesideFlagged, divergence, frozen
from decant.unlearning.base import UnlearningTask
from decant.unlearning.finetune import shortened


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    train, seed = shortened(task.train, settings.share), child(task.seed, "badt", "training")
    return train_classifier(task.kept, train, seed=seed, strategy=BadTeacher(task), start=task.model)


class BadTeacher(BesideFlagged):
    """Training with both teachers."""

    def __init__(self, task: UnlearningTask):
        super().__init__(task.flagged)
        self.good = task.model.to(device()).eval()
        self.bad = (
            build(architecture_of(task.kept, task.train), seed=child(task.seed, "badt", "untrained teacher"))
            .to(device())
            .eval()
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        flagged = self.drawn(batch)
        kept_logits, flagged_logits = model(torch.cat([batch.inputs, flagged])).float().chunk(2)
        wanted, forgotten = frozen(self.good, batch.inputs), frozen(self.bad, flagged)
        return divergence(wanted, kept_logits) + divergence(forgotten, flagged_logits)
