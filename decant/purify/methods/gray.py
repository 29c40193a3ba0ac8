"""Gray: grayscale, one of the three squeezings of "Image Shortcut Squeezing" (Liu et al., ICML 2023).

Many unlearnable perturbations (EM, for one) are stronger in colour than in brightness; without colour, little is left.

    Y = 0.299 R + 0.587 G + 0.114 B      (ITU-R BT.601), in all three channels

As in the paper, on the training images only. Images that are gray already are returned as they are.

Cost: about 4 s for 60,000 images of 32 x 32 x 3 (2 CPU cores).
Expected: no change on gray images; not measured on colour.
"""

from dataclasses import dataclass

import numpy as np

from decant.data.images import Images
from decant.errors import StageError
from decant.settings import Block

WEIGHTS = np.array([19595, 38470, 7471], np.uint32)  # in units of 1/65536: 0.299, 0.587, 0.114, as in PIL


@dataclass(frozen=True)
class Settings(Block):
    pass


def clean(images: Images, settings: Settings, *, seed: int) -> Images:
    """The images without colour. Raises: StageError for images of neither 1 nor 3 channels."""
    channels = images.shape[2]
    if channels == 1:
        return images
    if channels != 3:
        raise StageError(f"gray: images of 1 or 3 channels expected, {channels} found")
    brightness = (images.pixels @ WEIGHTS + 0x8000) >> 16  # (n, h, w)
    return images.with_pixels(np.repeat(brightness.astype(np.uint8)[..., None], 3, axis=3))
