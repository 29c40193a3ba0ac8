"""Unlearning: from a trained model to one as if some rows had never been there. One file each, found by its name.

A method's file has a frozen dataclass ``Settings`` and

    unlearn(task, settings) -> nn.Module

and adding a method is adding such a file. It gives back a network of its own in eval mode on the device; the model and
the rows that it was given stay as they are. `decant.unlearning._auto` measures the results without the truth and takes
the first that passes.

>>> done = unlearn_with("finetune", Task(model=model, kept=kept, flagged=flagged, train=TrainSettings(), seed=0))
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from decant import registry
from decant.data.images import Images
from decant.settings import TrainSettings, load


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
    return registry.names(__name__)


def unlearn_with(name: str, task: Task, **settings: Any) -> Unlearned:
    """The model without the flagged rows, by the method `name`.

    Raises: SettingsError for an unknown name or parameter.
    """
    module = registry.member(__name__, name, "unlearning")
    loaded = load(module.Settings, settings, name)
    started = time.perf_counter()
    model = module.unlearn(task, loaded)
    return Unlearned(model=model, seconds=time.perf_counter() - started)
