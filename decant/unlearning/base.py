"""What a way of unlearning is given, and how one is run by its name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.registry import Family
from decant.settings import load

FAMILY = Family("decant.unlearning", ("unlearn",))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every method is given."""

    model: nn.Module
    """Trained on kept and flagged rows alike, by `train`."""
    kept: Images
    flagged: Images
    train: TrainSettings
    seed: int
    on_step: Callable[[], None] = lambda: None
    """Is called after each step of a retraining, the one method that takes long."""


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    model: nn.Module
    seconds: float


def names() -> list[str]:
    return FAMILY.names()


def unlearn_with(name: str, task: Task, **settings: Any) -> Unlearned:
    """The model without the flagged rows, by the method `name`.

    Raises: SettingsError for an unknown name or parameter.
    """
    module = FAMILY.member(name, "unlearning")
    loaded = load(module.Settings, settings, name)
    started = time.perf_counter()
    model = module.unlearn(task, loaded)
    return Unlearned(model=model, seconds=time.perf_counter() - started)
