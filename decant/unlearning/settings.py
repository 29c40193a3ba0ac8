"""Parameters of the stage `unlearn`."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from decant.errors import SettingsError
from decant.registry import UNLEARNING_METHODS
from decant.settings import Block, Fraction

METHODS = ("auto", *UNLEARNING_METHODS.names())


@dataclass(frozen=True, kw_only=True)
class UnlearnSettings(Block):
    """How the flagged rows' effect is taken out of the model."""

    enabled: bool = True
    method: Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})] = "retrain"
    """A file of decant/unlearning; `auto`: a cheap one where a check accepts its result, else `retrain`; where that
    leaves the affected points as they were, because poison was found only in part, the best result tried."""
    margin: Fraction = 0.005
    """`auto`: accuracy on held-out kept rows that a cheap method may lose."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingsError(f"unlearn.method: one of {', '.join(METHODS)} expected, {self.method!r} found")
