"""Libraries that only rivals of ours need: a plain install lacks them, the extra `peers` brings them."""

import importlib
from types import ModuleType

from decant.errors import StageError


def peer(library: str, *, needed_by: str) -> ModuleType:
    """A library of the extra `peers`. Raises StageError, which says how to get it, where it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise StageError(f"{needed_by}: needs {library}: pip install 'decant[peers]' ({error})") from error
