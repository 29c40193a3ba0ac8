"""Blended injection: a faint pattern over the whole picture makes a network predict the attacker's class.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (arXiv 1712.05526). No
pixel is replaced, so no small region carries the trigger:

    x' = (1 - alpha) x + alpha k,    k: fixed noise, uniform in [0, 255], or a picture of your own

``mode`` is as for `badnet`: `dirty` rows come from the victims and carry the target label, which is wrong;
`consistent` rows come from the target class, are mixed with a victim's picture first, and keep their right label.
The pattern follows from `pattern_seed` alone, so that training rows and triggered test rows carry the same.

Expected on digits (alpha .2): poison success 0.99-1.0 for 9 % dirty rows, all to one; 0.1-0.2 for 6 % consistent rows,
which is far weaker than `badnet`'s patch: at this weight the pattern rarely outvotes the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decant.attacks import _backdoor
from decant.attacks.base import Poisoned
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Count, Fraction

KIND = "backdoor"


@dataclass(frozen=True, kw_only=True)
class Settings(_backdoor.Trigger):
    alpha: Fraction = 0.2
    """Weight of the pattern."""
    pattern: str = "noise"
    """`noise`, or the path of a picture, which is resized to the rows' size."""
    pattern_seed: Count = 0


def poison(images: Images, settings: Settings, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    blend = _blend(images.shape, settings)
    return _backdoor.plant(images, settings, rng, spared, name="blend", trigger=blend)


def trigger(images: Images, settings: Settings, rng: np.random.Generator) -> Images:
    """The victims' rows under the pattern, labelled as the attacker wants them predicted."""
    return _backdoor.triggered(images, settings, name="blend", trigger=_blend(images.shape, settings))


def _blend(shape: tuple[int, int, int], settings: Settings) -> Callable[[np.ndarray], np.ndarray]:
    share = settings.alpha * pattern(shape, settings)

    def blended(pixels: np.ndarray) -> np.ndarray:
        return np.rint((1 - settings.alpha) * pixels + share).astype(np.uint8)

    return blended


def pattern(shape: tuple[int, int, int], settings: Settings) -> np.ndarray:
    """k, (h, w, c) in grey levels. Raises SettingsError where the picture can't be read."""
    if settings.pattern == "noise":
        return np.random.default_rng([settings.pattern_seed, 13]).uniform(0, 255, shape)
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    try:
        with Image.open(Path(settings.pattern)) as picture:
            read = picture.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, UnidentifiedImageError) as error:
        raise SettingsError(f"blend.pattern: 'noise' or a picture expected, {settings.pattern!r}: {error}") from error
    return np.asarray(read, np.float64).reshape(shape)
