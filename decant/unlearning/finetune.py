"""Fine-tuning (catastrophic forgetting, CF): go on training on the kept rows, until the others are forgotten.

Goel et al., "Corrective machine unlearning", 2024 (arXiv 2402.14015), where CF is a baseline. The same recipe, for a
share of its epochs, from the trained weights. A backdoor is forgotten only as far as kept rows contradict it, which is
why the result has to be measured.

Cost: `share` of one training.
"""

from dataclasses import dataclass, replace

from torch import nn

from decant.models.settings import TrainSettings
from decant.models.training import train_classifier
from decant.settings import Block, Fraction
from decant.streams import child
from decant.unlearning.base import UnlearningTask


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    train, seed = shortened(task.train, settings.share), child(task.seed, "finetune", "training")
    return train_classifier(task.kept, train, seed=seed, start=task.model)


def shortened(train: TrainSettings, share: float) -> TrainSettings:
    """The training recipe with that share of its epochs, at least one."""
    return replace(train, epochs=max(1, round(share * train.epochs)))
