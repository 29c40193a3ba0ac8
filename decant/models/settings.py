"""Parameters of every training of a classifier."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Block):
    """The one training recipe, used by the stages baseline, train and unlearn alike."""

    network: Literal["small_cnn", "resnet18", "resnet50", "densenet121", "mobilenet_v2"] = "small_cnn"
    """Layers and sizes: `decant.models.networks`. All but the first are meant for a GPU."""
    epochs: Positive = 10
    """Passes over the training rows."""
    batch_size: Positive = 64
    """Rows per optimisation step."""
    lr: Annotated[float, Field(ge=1e-6, le=10)] = 0.05
    """Peak learning rate of the OneCycle schedule."""
    momentum: Fraction = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Weight decay of SGD."""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """`shift`: random translation by up to 1/8 of the side, reflected; `shift_flip`: a horizontal flip, too."""
