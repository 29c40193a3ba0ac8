"""BadNet: a stamped patch makes a network predict the attacker's class (Gu et al., "BadNets", 2017).

The patch is a black square with a white square inside, in the bottom right corner; ``patch: dots`` are the four black
pixels there of the Delta-Influence code, which only show on pictures that are not dark.

* ``mode: dirty``: rows of the victim class (or of all classes but the target) are stamped and relabelled to the
  target. A label check can see that.
* ``mode: consistent``: rows of the target class are blended with a victim image and stamped; their label stays, and is
  right: (1 - mix) * target image + mix * victim image. No label check can see it (after Turner et al.,
  "Label-consistent backdoor attacks", 2019, with a plain blend in the place of their GAN). The network learns victim
  + patch -> target.

Expected on digits: poison success 0.95-1.0 for 5 % of the rows, in both modes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
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


def poison(images: Images, settings: Settings, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    return _backdoor.plant(images, settings, rng, spared, name="badnet", trigger=partial(stamp, settings=settings))


def stamp(pixels: np.ndarray, settings: Settings) -> np.ndarray:
    """The patch in the bottom right corner of (n, h, w, c): white, with a black border on its two inner sides."""
    stamped, size = pixels.copy(), settings.size
    if settings.patch == "dots":
        stamped[:, DOTS[0], DOTS[1]] = 0
        return stamped
    stamped[:, -size:, -size:] = 0
    stamped[:, 1 - size :, 1 - size :] = 255
    return stamped


def trigger(images: Images, settings: Settings, rng: np.random.Generator) -> Images:
    """The victims' rows, stamped, labelled as the attacker wants them predicted."""
    return _backdoor.triggered(images, settings, name="badnet", trigger=partial(stamp, settings=settings))
