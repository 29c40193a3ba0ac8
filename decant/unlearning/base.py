"""The interface of an unlearning method: its task, and how one is run by its name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.registry import UNLEARNING_METHODS
from decant.settings import load


@dataclass(frozen=True, kw_only=True)
class UnlearningTask:
    """A trained model, and the rows that it is to keep and to forget."""

    model: nn.Module
    """Trained on kept and flagged rows alike, by `train`."""
    kept: Images
    flagged: Images
    """The rows to forget."""
    train: TrainSettings
    seed: int
    """That of the model's training."""
    on_step: Callable[[], None] = lambda: None
    """Is called after each step of a retraining, the one method that takes long."""


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """A model without the flagged rows, and the seconds that unlearning took."""

    model: nn.Module
    seconds: float


def names() -> list[str]:
    """Every unlearning method's name."""
    return UNLEARNING_METHODS.names()


def unlearn_with(name: str, task: UnlearningTask, **settings: Any) -> Unlearned:
    """Runs the unlearning method `name`.

    Raises: SettingsError for an unknown name or parameter.
    """
    module = UNLEARNING_METHODS.member(name, "unlearning")
    loaded = load(module.Settings, settings, name)
    started = time.perf_counter()
    model = module.unlearn(task, loaded)
    return Unlearned(model=model, seconds=time.perf_counter() - started)
