"""Parameters of the stages `evaluate` and `report`."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from decant.settings import Block


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Block):
    """How scores are counted for histograms."""

    bins: Annotated[int, Field(ge=4, le=200)] = 40
    """Bins of the score histograms."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Block):
    """What the report shows."""

    rows: Annotated[int, Field(ge=1, le=200)] = 18
    """Suspicious rows shown per stage."""
