"""Parameters of the stage `detect`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from decant.registry import DETECTORS
from decant.settings import Block, Count, Positive


@dataclass(frozen=True, kw_only=True)
class DetectSettings(Block):
    """How the training rows that cause the affected points are found."""

    enabled: bool = True
    detector: Annotated[str, Field(json_schema_extra={"enum": DETECTORS.names()})] = "joint"
    """A file of decant/detectors; docs/methods/influence.md compares them."""
    damping: Annotated[float, Field(ge=0, le=100)] = 0.1
    """EK-FAC damping, as a share of each layer's mean eigenvalue."""
    same_label: bool = True
    """Only rows that carry the affected point's predicted label can be flagged."""
    copies: Positive = 50
    """`delta`: transformed copies per affected point (n in the paper)."""
    tolerance: Count = 2
    """`delta`: copies that may disagree (n_tol in the paper)."""
    tau: float = 0.0
    """`delta`: a copy votes a row down when its influence changes by less than this (τ in the paper)."""
    varied: Literal["both", "labels", "images"] = "both"
    """`delta`: what a copy changes about its point; all but `both` are the paper's ablations."""

    def __post_init__(self) -> None:
        DETECTORS.require(self.detector, "detect.detector")
