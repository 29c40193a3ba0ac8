"""Run a purification method by its name: `clean` for the images, `train_with` for a classifier."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from decant.data.images import Images
from decant.data.tables import iter_images, read_images
from decant.errors import SettingsError
from decant.models.settings import TrainSettings
from decant.models.training import train_classifier
from decant.purify.two_stage import Parts
from decant.registry import PURIFICATION_METHODS
from decant.settings import load


def names() -> list[str]:
    """The names of all methods."""
    return PURIFICATION_METHODS.names()


def train_with(
    name: str,
    images: Images,
    train_settings: TrainSettings,
    *,
    seed: int,
    probe: Images | None = None,
    **settings: Any,
) -> nn.Module:
    """A classifier trained on the images with the method `name`, in eval mode, on the device.

    Raises: SettingsError for an unknown name or parameter; StageError where the method can't work.
    """
    module, loaded = _loaded(name, settings)
    if hasattr(module, "train"):
        return module.train(images, train_settings, loaded, seed=seed, probe=probe)
    return train_classifier(module.clean(images, loaded, seed=seed), train_settings, seed=seed)


def cleans(name: str) -> bool:
    """Whether the method changes images, so that `clean` takes its name."""
    return hasattr(_module(name), "clean")


def clean(name: str, images: Images, *, seed: int, **settings: Any) -> Images:
    """The images as the method `name` purifies them.

    Raises: SettingsError for an unknown name or parameter, or for a method that changes the training alone.
    """
    module, loaded = _loaded(name, settings)
    if not hasattr(module, "clean"):
        cleaning = ", ".join(other for other in names() if cleans(other))
        raise SettingsError(
            f"{name}: changes the training and not the images (train_with); the images are cleaned by {cleaning}"
        )
    return module.clean(images, loaded, seed=seed)


def cleaned_parts(name: str, path: Path, *, seed: int) -> Parts:
    """The table's rows as the method `name` purifies them, and their residuals; all rows are read at once."""
    cleaned, start = clean(name, read_images(path), seed=seed), 0
    for before in iter_images(path):
        after = cleaned.select(np.arange(start, start + len(before)))
        yield after, ((before.pixels.astype(np.float32) - after.pixels) / 255).astype(np.float16)
        start += len(before)


def _loaded(name: str, settings: dict[str, Any]) -> tuple[ModuleType, Any]:
    module = _module(name)
    return module, load(module.Settings, settings, name)


def _module(name: str) -> ModuleType:
    return PURIFICATION_METHODS.member(name, "purification method")
