"""Countermeasures against unlearnable examples: ours and its rivals. One file each, found by its name.

A countermeasure gets a training set that may carry unlearnable noise and yields a classifier that should do well on
clean data. Its file has a frozen dataclass ``Settings`` and at least one of

    clean(images, settings, *, seed) -> Images             one that changes the data before ordinary training
    train(images, train_settings, settings, *, seed, probe) -> nn.Module       one that changes the training itself

`clean` keeps ids, labels and shapes, and never changes its input. `probe` are labelled images known to be clean, or
None; of those here, only `iss` looks at them. Adding a countermeasure is adding such a file.

>>> model = train_with("jpeg", images, TrainSettings(network="resnet18"), seed=0, quality=10)
"""

from types import ModuleType
from typing import Any

from torch import nn

from decant import registry
from decant.data.images import Images
from decant.errors import SettingsError
from decant.models.training import train_classifier
from decant.settings import TrainSettings, load


def names() -> list[str]:
    return registry.names(__name__)


def train_with(
    name: str,
    images: Images,
    train_settings: TrainSettings,
    *,
    seed: int,
    probe: Images | None = None,
    **settings: Any,
) -> nn.Module:
    """A classifier trained on `images` under the countermeasure `name`, in eval mode, on the device.

    Raises: SettingsError for an unknown name or parameter; StageError where the countermeasure can't work.
    """
    module, loaded = _loaded(name, settings)
    if hasattr(module, "train"):
        return module.train(images, train_settings, loaded, seed=seed, probe=probe)
    return train_classifier(module.clean(images, loaded, seed=seed), train_settings, seed=seed)


def cleans(name: str) -> bool:
    """Whether the countermeasure changes the data, so that `clean` can be asked for it."""
    return hasattr(_module(name), "clean")


def clean(name: str, images: Images, *, seed: int, **settings: Any) -> Images:
    """The images as the countermeasure `name` would train on them.

    Raises: SettingsError for an unknown name or parameter, or when it works by its training alone.
    """
    module, loaded = _loaded(name, settings)
    if not hasattr(module, "clean"):
        raise SettingsError(f"{name}: works by its training alone and cleans no images; use train_with")
    return module.clean(images, loaded, seed=seed)


def _loaded(name: str, settings: dict[str, Any]) -> tuple[ModuleType, Any]:
    module = _module(name)
    return module, load(module.Settings, settings, name)


def _module(name: str) -> ModuleType:
    return registry.member(__name__, name, "countermeasure")
