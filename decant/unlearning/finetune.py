"""Catastrophic forgetting, CF: go on training on the kept rows, and count on the rest being forgotten.

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
from decant.unlearning.base import Task


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    share: Fraction = 0.3
    """Of the epochs of one training."""


def unlearn(task: Task, settings: Settings) -> nn.Module:
    return train_classifier(task.kept, shortened(task.train, settings.share), seed=task.seed, start=task.model)


def shortened(train: TrainSettings, share: float) -> TrainSettings:
    """The recipe with that share of its epochs, one at least."""
    return replace(train, epochs=max(1, round(share * train.epochs)))
