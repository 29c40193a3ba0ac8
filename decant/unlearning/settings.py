"""Parameters of the stage `unlearn`."""

from dataclasses import dataclass
from typing import Literal

from decant.settings import Block, Fraction


@dataclass(frozen=True, kw_only=True)
class UnlearnSettings(Block):
    """Taking the flagged rows' effect out of the model."""

    enabled: bool = True
    method: Literal["auto", "retrain", "finetune", "ssd", "scrub", "badt", "potion"] = "retrain"
    """A file of decant/unlearning; `auto`: a cheap one where a check accepts its result, else `retrain`, and a repair
    where retraining can't help because poison was found only in part."""
    margin: Fraction = 0.005
    """`auto`: accuracy on held-out kept rows that a cheap method may cost."""
