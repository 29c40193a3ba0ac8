"""Exact unlearning: train again from scratch on the kept rows, by the same recipe and seed.

Nothing of the flagged rows' effect is left, except what similar rows that were not flagged teach again. The other
methods are measured by it.

Cost: one training.
"""

from dataclasses import dataclass

from torch import nn

from decant.models.training import train_classifier
from decant.settings import Block
from decant.unlearning.base import UnlearningTask


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def unlearn(task: UnlearningTask, settings: Settings) -> nn.Module:
    return train_classifier(task.kept, task.train, seed=task.seed, on_step=task.on_step)
