"""BDR: bit depth reduction, one of the three squeezings of "Image Shortcut Squeezing" (Liu et al., ICML 2023).

A bounded perturbation moves a pixel by a few grey levels; with two bits per pixel most pixels fall back to where they
were.

    x <- floor(2^b x) / 2^b,  x in [0, 1],  b = 2

As in the paper, on the training images only; white alone reaches the fifth level, 1. Changed: stored rounded to uint8,
at most half a grey level away.

Cost: a look-up table; about 1 s for 60,000 images of 32 x 32 x 3 (2 CPU cores).
Expected: 91.7 % clean accuracy on digits under LSP where `none` has 76.5 %, and 96.8 % without it where `none` has
98.6 % (settings: `none`; 3 seeds, 2 CPU cores).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from decant.data.images import Images
from decant.settings import Block


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    bits: Annotated[int, Field(ge=1, le=8)] = 2
    """Bits that are left of each pixel."""


def clean(images: Images, settings: Settings, *, seed: int) -> Images:
    """The images with `bits` bits per pixel."""
    levels = 2**settings.bits
    steps = levels * np.arange(256) // 255  # floor(2^b x)
    table = np.rint(steps * 255 / levels).astype(np.uint8)
    return images.with_pixels(table[images.pixels])
