"""OPS: one-pixel shortcut (Wu et al., "One-pixel shortcut: on the learning preference of deep neural networks", 2023).

In all images of a class, one pixel is set to one colour: the position and the extreme colour that differ most, and
most steadily, from the class's images. A network that finds the pixel needs nothing else. Over positions (i, j) and
colours v in {0, 1}^channels, with mean and standard deviation over the class's rows and channels:

    score(i, j, v) = mean |v - x_ij| / (std |v - x_ij| + 1e-6),   the largest at a position that no earlier class has

Vectorised: |v_c - x_c| is x_c or 1 - x_c, so all scores follow from the means of x_c and x_c^2, in one pass over the
rows. Changed: ``sparsity`` pixels per class in the order of their scores; among equal scores (the constant borders of
digits have thousands) the position is drawn at random, where the first in reading order would put all classes into one
corner. ``em`` and then ``ops`` in `simulate.attacks` is CIFAR-10-S.

Cost: 0.04 s for 5,000 CIFAR-10 rows (2 CPU cores).
Expected: clean accuracy of small_cnn on 5,000 CIFAR-10 rows 0.62 -> 0.12, on the digits of the tests 0.99 -> 0.28-0.49;
random shifts move the pixel and weaken it.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, UInt8

from decant.attacks.base import Poisoned, perturbed_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction, Positive

KIND = "unlearnable"
STEADY = 1e-6  # keeps the score of a constant pixel finite, and far above that of any other


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    sparsity: Positive = 1
    """Pixels that are set in each row (1 in the paper)."""
    rate: Fraction = 1.0
    """Share of the rows whose pixels are set."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    height, width, _ = images.shape
    if settings.sparsity * images.classes > height * width:
        most = height * width // images.classes
        raise SettingsError(f"ops.sparsity: at most {most} for {images.classes} classes of {height} x {width} pixels")
    rows = perturbed_rows(images, settings.rate, rng, key="ops.rate")
    pixels = images.pixels.copy()
    free = np.ones((height, width), bool)
    for label in range(images.classes):
        members = np.flatnonzero(rows & (images.labels == label))
        if not len(members):
            continue
        for i, j, colour in _best(scores(images.pixels[members]), free, settings.sparsity, rng):
            pixels[members, i, j] = colour
            free[i, j] = False
    return Poisoned(images.with_pixels(pixels), rows)


def colours(channels: int) -> Float[np.ndarray, "v c"]:
    """The 2^channels extreme colours, of 0 and 1."""
    return np.array(list(product((0.0, 1.0), repeat=channels)))


def scores(pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "v h w"]:
    """score(i, j, v) of every extreme colour and position, for the images of one class."""
    first = pixels.mean(0) / 255  # E[x_c]: (h, w, c)
    second = np.square(pixels, dtype=np.uint16).mean(0) / 255**2
    found = []
    for colour in colours(pixels.shape[3]):
        mean = np.where(colour == 1, 1 - first, first).mean(2)
        square = np.where(colour == 1, 1 - 2 * first + second, second).mean(2)
        found.append(mean / (np.sqrt(np.maximum(square - mean**2, 0)) + STEADY))
    return np.stack(found)


def _best(
    score: Float[np.ndarray, "v h w"], free: Bool[np.ndarray, "h w"], count: int, rng: np.random.Generator
) -> list[tuple[int, int, Float[np.ndarray, " c"]]]:
    """(i, j, colour in grey levels) of the `count` free positions with the best scores."""
    best = np.where(free, score.max(0), -np.inf).ravel()
    order = np.lexsort((rng.random(best.size), -best))[:count]
    table = colours(int(np.log2(len(score)))) * 255
    places = [divmod(int(at), free.shape[1]) for at in order]
    return [(i, j, table[score[:, i, j].argmax()]) for i, j in places]
