"""Families of methods: packages with one file per method, found by its name. A file that begins with _ is none."""

import importlib
import pkgutil
from types import ModuleType

from decant.errors import SettingsError


def names(package: str) -> list[str]:
    """Of the methods in a package, such as "decant.attacks"."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def member(package: str, name: str, what: str) -> ModuleType:
    """The method's file. `what`: how an error calls the one who asked.

    Raises: SettingsError for an unknown name.
    """
    known = names(package)
    if name not in known:
        raise SettingsError(f"{what}: one of {', '.join(known)} expected, {name!r} found")
    return importlib.import_module(f"{package}.{name}")
