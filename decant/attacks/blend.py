"""Blended injection: a faint pattern over the whole image makes a network predict the attacker's class.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (arXiv 1712.05526). No
pixel is replaced, so no small region holds the trigger:

    x' = (1 - alpha) x + alpha k,    k: a fixed random pattern, uniform in [0, 255], or an image of your own

``mode`` is as for `badnet`: `dirty` rows are the victims' and carry the target label, which is wrong; `consistent` rows
are of the target class, are blended with a victim's image first, and keep their right label. The pattern follows from
`pattern_seed` alone, so that training rows and triggered test rows carry the same.

Cost: milliseconds.
Expected: on digits (alpha .2), poison success 0.99-1.0 for 9 % dirty rows, victims of all classes; 0.1-0.2 for 6 %
consistent rows, far weaker than `badnet`'s patch: at this weight the pattern rarely outweighs the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from decant.attacks import _backdoor
from decant.attacks.base import Poisoned
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Count, Fraction
from decant.streams import stream

KIND = "backdoor"
Pixels = UInt8[np.ndarray, "n h w c"]


@dataclass(frozen=True, kw_only=True)
class Settings(_backdoor.Trigger):
    alpha: Fraction = 0.2
    """Weight of the pattern."""
    pattern: str = "noise"
    """`noise` (uniform random values), or the path of an image, which is resized to the rows' size."""
    pattern_seed: Count = 0
    """Seed of the random pattern."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    blend = _blend(images.shape, settings)
    return _backdoor.plant(images, settings, rng, taken, name="blend", trigger=blend)


def trigger(images: Images, settings: Settings, rng: np.random.Generator) -> Images:
    """The victims' rows with the pattern, labelled with the target class."""
    return _backdoor.triggered(images, settings, name="blend", trigger=_blend(images.shape, settings))


def _blend(shape: tuple[int, int, int], settings: Settings) -> Callable[[Pixels], Pixels]:
    """The function from x to x'."""
    share = settings.alpha * pattern(shape, settings)

    def blended(pixels: Pixels) -> Pixels:
        return np.rint((1 - settings.alpha) * pixels + share).astype(np.uint8)

    return blended


def pattern(shape: tuple[int, int, int], settings: Settings) -> Float[np.ndarray, "h w c"]:
    """k, in grey levels. Raises: SettingsError where the image can't be read."""
    if settings.pattern == "noise":
        return stream(settings.pattern_seed, "blend", "pattern").uniform(0, 255, shape)
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    try:
        with Image.open(Path(settings.pattern)) as opened:
            read = opened.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, UnidentifiedImageError) as error:
        raise SettingsError(f"blend.pattern: 'noise' or an image expected, {settings.pattern!r}: {error}") from error
    return np.asarray(read, np.float64).reshape(shape)
