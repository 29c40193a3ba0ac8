"""CUDA: class-wise blur (Sadasivan et al., "CUDA: convolution-based unlearnable datasets", CVPR 2023).

Every class is blurred with a random kernel of its own, and networks learn to tell the kernels. The perturbation depends
on the image and is as large as its edges: no pattern that is added describes it. So this attack is the negative control
for purifiers that look for additive perturbations.

    x -> k_y * x,   k_y = 1 in the centre, U(0, blur) elsewhere, divided by its sum;   size x size, same on each channel

Changed: the kernel's sum is 1, so that brightness stays; the paper rescales each image by its own maximum. Borders are
reflected.

Cost: 1.2 s for 5,000 CIFAR-10 rows (2 CPU cores).
Expected: clean accuracy of small_cnn on the digits of the tests 0.99 -> 0.11-0.12; with a kernel of 5 one of two seeds
kept 0.86.
"""

from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from pydantic import Field

from decant.attacks.base import Poisoned, perturbed_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction

KIND = "unlearnable"
CHUNK = 4096  # rows that are blurred at once, in float32


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    size: Annotated[int, Field(ge=3, le=63)] = 9
    """Side of the kernel in pixels, odd (9 for 32 px in the paper)."""
    blur: Annotated[float, Field(ge=0.001, le=10)] = 0.3
    """Largest weight beside the centre's 1 (0.3 for CIFAR-10 in the paper)."""
    rate: Fraction = 1.0
    """Share of the rows that are blurred."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    largest = 2 * min(images.shape[:2]) - 1
    if settings.size % 2 == 0 or settings.size > largest:
        raise SettingsError(f"blur.size: an odd number up to {largest} expected, {settings.size} found")
    rows = perturbed_rows(images, settings.rate, rng, key="blur.rate")
    pixels = images.pixels.copy()
    for label, kernel in enumerate(draw_kernels(images.classes, settings, rng)):
        members = np.flatnonzero(rows & (images.labels == label))
        for start in range(0, len(members), CHUNK):
            part = members[start : start + CHUNK]
            pixels[part] = np.rint(filtered(pixels[part], kernel)).clip(0, 255).astype(np.uint8)
    return Poisoned(images.with_pixels(pixels), rows)


def draw_kernels(classes: int, settings: Settings, rng: np.random.Generator) -> Float[np.ndarray, "k s s"]:
    """k_y of every class, each of sum 1."""
    kernels = rng.uniform(0, settings.blur, (classes, settings.size, settings.size))
    kernels[:, settings.size // 2, settings.size // 2] = 1
    return kernels / kernels.sum((1, 2), keepdims=True)


def filtered(pixels: UInt8[np.ndarray, "n h w c"], kernel: Float[np.ndarray, "s s"]) -> Float32[np.ndarray, "n h w c"]:
    """k * x of every image, borders reflected."""
    size, reach = len(kernel), len(kernel) // 2
    _, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "symmetric")
    out = np.zeros(pixels.shape, np.float32)
    for i, j in product(range(size), repeat=2):
        out += np.float32(kernel[i, j]) * padded[:, i : i + height, j : j + width]
    return out
