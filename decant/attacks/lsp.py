"""LSP: linearly separable perturbations (Yu et al., "Availability attacks create shortcuts", KDD 2022).

An unlearnable example without a surrogate network. Every class gets its own Gaussian around a distinct corner of a
hypercube; a draw from it is laid out as a grid of g x g patches and added to the image. A network learns these patches
sooner than the images and fails on clean data.

    v ~ N(mu_y, A_y A_y'),  mu_y in {-10, 10}^d,  A_y ~ U(-1, 1)^(d x d),  d = g * g * channels
    delta = upsample(v)  scaled to RMS = strength / 255 per pixel

Changed: the bound is stated per pixel (RMS in grey levels), so that it carries across sizes: 6/255 is the paper's,
about l2 = 1.3 on CIFAR-10. Stored rounded to uint8 and clipped to [0, 255].

Cost: under a second for 60,000 MNIST rows.
Expected: a digit classifier falls to chance from 24/255 on; docs/log.md has weaker ones, alone and with wrong labels.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction, Positive

KIND = "unlearnable"
CLASS_SEPARATION = 10.0  # half the edge of the hypercube, as in the paper's generator


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[float, Field(ge=0, le=255)] = 16
    """RMS of a row's perturbation in grey levels."""
    patch: Positive = 4
    """Side of a patch in pixels (8 for 32 px in the paper)."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="lsp.rate")
    delta = perturbations(images.labels[rows], images.shape, images.classes, settings, rng)
    return add_perturbations(images, rows, delta)


def perturbations(
    labels: Int[np.ndarray, " n"],
    shape: tuple[int, int, int],
    classes: int,
    settings: Settings,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "n h w c"]:
    """One perturbation per label, in grey levels, each of RMS `strength`."""
    height, width, channels = shape
    grid = -(-height // settings.patch), -(-width // settings.patch)
    d = grid[0] * grid[1] * channels
    if 2**d < classes:
        raise SettingsError(f"lsp.patch: {settings.patch} leaves {d} patches, too few for {classes} classes; lower it")
    values = np.empty((len(labels), d), np.float32)
    for label, corner in enumerate(_corners(classes, d, rng)):
        rows = labels == label
        spread = rng.uniform(-1, 1, (d, d))
        values[rows] = CLASS_SEPARATION * corner + rng.standard_normal((rows.sum(), d)) @ spread
    delta = values.reshape(len(labels), *grid, channels)
    delta = delta.repeat(settings.patch, 1).repeat(settings.patch, 2)[:, :height, :width]
    rms = np.sqrt((delta**2).mean((1, 2, 3), keepdims=True))
    return delta * (settings.strength / rms)


def _corners(count: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "k d"]:
    """`count` distinct corners of {-1, 1}^d."""
    found: set[bytes] = set()
    corners: list[np.ndarray] = []
    while len(corners) < count:
        corner = rng.choice([-1.0, 1.0], d)
        if corner.tobytes() not in found:
            found.add(corner.tobytes())
            corners.append(corner)
    return np.stack(corners)
