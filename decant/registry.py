"""Families of methods, found by their file names; and libraries that only rivals of ours need.

A method is a file of its family's package that defines the family's functions: ``decant/attacks/badnet.py`` is an
attack because it has ``poison``. Adding a method is adding such a file.
"""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from decant.errors import SettingsError, StageError


@dataclass(frozen=True)
class Family:
    """A package of methods."""

    package: str
    """Its dotted name, such as "decant.attacks"."""
    functions: tuple[str, ...]
    """A file that defines one of these is a method."""

    def names(self) -> list[str]:
        """The methods' names, from the texts of the files: nothing is imported."""
        defined = re.compile(rf"^def ({'|'.join(self.functions)})\(", re.MULTILINE)
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        files = (path for path in folder.glob("*.py") if path.stem != "base")  # base.py is the interface
        return sorted(path.stem for path in files if defined.search(path.read_text(encoding="utf-8")))

    def require(self, name: str, asked_by: str) -> None:
        """Checks that there is a method of that name. Raises: SettingsError, which lists the methods.

        asked_by: how the error calls the parameter or the caller that named it.
        """
        known = self.names()
        if name not in known:
            raise SettingsError(f"{asked_by}: one of {', '.join(known)} expected, {name!r} found")

    def member(self, name: str, asked_by: str) -> ModuleType:
        """Imports the method's module. Raises: as `require`."""
        self.require(name, asked_by)
        return importlib.import_module(f"{self.package}.{name}")


ATTACKS = Family("decant.attacks", ("poison",))
PURIFICATION_METHODS = Family("decant.purify.methods", ("clean", "train"))
CLEANING_METHODS = Family("decant.purify.methods", ("clean",))  # those that change the data, not only the training
LABEL_CHECKS = Family("decant.label_checks", ("judge",))
CONFIDENCE_SCORERS = Family("decant.confidence", ("fit_and_score",))
DETECTORS = Family("decant.detectors", ("judge",))
UNLEARNING_METHODS = Family("decant.unlearning", ("unlearn",))


def peer(library: str, *, needed_by: str) -> ModuleType:
    """A library of the extra `peers`. Raises StageError, which says how to get it, where it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise StageError(f"{needed_by}: needs {library}: pip install 'decant[peers]' ({error})") from error
