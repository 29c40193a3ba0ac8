"""BadNets: a stamped patch makes a network predict the attacker's class (Gu et al., "BadNets", 2017).

The patch is a white square with a black border on its inner sides, in the bottom right corner; ``patch: dots`` are the
four black pixels there of the Delta-Influence code, which only show on images that are not dark.

* ``mode: dirty``: rows of the victim class (or of all classes but the target) are stamped and relabelled to the target.
  A label check can find that.
* ``mode: consistent``: rows of the target class are blended with a victim's image and stamped,
  (1 - mix) * target image + mix * victim image; their label stays, and is right (after Turner et al., "Label-consistent
  backdoor attacks", 2019, with a plain blend in place of their GAN). No label check can find it. The network learns
  victim + patch -> target.

Cost: milliseconds.
Expected: on digits, poison success 0.95-1.0 for 5 % of the rows, in both modes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, UInt8
from pydantic import Field

from decant.attacks import _backdoor
from decant.attacks.base import Poisoned
from decant.data.images import Images

KIND = "backdoor"
DOTS = ([-4, -2, -3, -2], [-2, -2, -3, -4])  # rows, columns


@dataclass(frozen=True, kw_only=True)
class Settings(_backdoor.Trigger):
    size: Annotated[int, Field(ge=2, le=64)] = 5
    """Side of the square in pixels, its black border of one pixel on the upper left included."""
    patch: Literal["square", "dots"] = "square"
    """White square with a black border, or the Delta-Influence code's four black pixels."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    return _backdoor.plant(images, settings, rng, taken, name="badnet", trigger=partial(stamp, settings=settings))


def stamp(pixels: UInt8[np.ndarray, "n h w c"], settings: Settings) -> UInt8[np.ndarray, "n h w c"]:
    """The pixels with the patch in the bottom right corner."""
    stamped, size = pixels.copy(), settings.size
    if settings.patch == "dots":
        stamped[:, DOTS[0], DOTS[1]] = 0
        return stamped
    stamped[:, -size:, -size:] = 0
    stamped[:, 1 - size :, 1 - size :] = 255
    return stamped


def trigger(images: Images, settings: Settings, rng: np.random.Generator) -> Images:
    """The victims' rows, stamped, labelled with the target class."""
    return _backdoor.triggered(images, settings, name="badnet", trigger=partial(stamp, settings=settings))
