"""Exact unlearning: train again from scratch on the kept rows, by the same recipe and seed. Nothing else of the flagged
rows' effect is left than what rows like them, not flagged, bring back.

Cost: one training. What every other method is measured by.
"""

from dataclasses import dataclass

from torch import nn

from decant.models.training import train_classifier
from decant.settings import Block
from decant.unlearning.base import Task


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def unlearn(task: Task, settings: Settings) -> nn.Module:
    return train_classifier(task.kept, task.train, seed=task.seed, on_step=task.on_step)
