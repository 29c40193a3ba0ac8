"""Parameters of the stage `simulate`. Each attack's own parameters are in its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decant.settings import Block, Count


@dataclass(frozen=True, kw_only=True)
class SimulateSettings(Block):
    """Poison that is planted for an experiment."""

    attacks: tuple[Mapping[str, Any], ...] = ()
    """Attacks to plant, in this order; each a mapping with `name` (a file of decant/attacks) and that attack's
    parameters."""
    affected_points: Count = 5
    """Triggered test images handed to `detect` with the label that a user saw predicted."""
