"""LSP: linearly separable perturbations (Yu et al., "Availability attacks create shortcuts", KDD 2022).

Unlearnable noise without any model: every class gets its own Gaussian cloud around a distinct corner of a hypercube, a
draw from it is laid out as a grid of g x g patches and added to the image. A network finds these patches easier than
the picture and fails on clean data.

    v ~ N(mu_y, A_y A_y'),  mu_y in {-10, 10}^d,  A_y ~ U(-1, 1)^(d x d),  d = g * g * channels
    delta = upsample(v)  scaled to RMS = strength / 255 per pixel

As in the paper, except that the bound is stated per pixel (RMS in grey levels), so that it carries across sizes:
6/255 is the paper's, about l2 = 1.3 on CIFAR-10. Stored rounded to uint8 and clipped to [0, 255].

Cost: under a second for 60,000 MNIST rows. Expected: a digit classifier falls to chance from 24/255 on; see
docs/log.md for what weaker noise does, alone and together with wrong labels.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from decant.attacks.base import Poisoned, add_noise, carriers
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction, Positive

KIND = "noise"
CLASS_SEPARATION = 10.0  # half the edge of the hypercube, as in the paper's generator


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[float, Field(ge=0, le=255)] = 16
    """RMS of a row's perturbation in grey levels."""
    patch: Positive = 4
    """Side of a patch in pixels (8 for 32 px in the paper)."""
    rate: Fraction = 1.0
    """Share of the rows that carry noise."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    rows = carriers(images, settings.rate, rng, key="lsp.rate")
    return add_noise(images, rows, perturbations(images.labels[rows], images.shape, images.classes, settings, rng))


def perturbations(
    labels: np.ndarray, shape: tuple[int, int, int], classes: int, settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """(n, h, w, c) float32 in grey levels, one per label, each of RMS `strength`."""
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
    noise = values.reshape(len(labels), *grid, channels)
    noise = noise.repeat(settings.patch, 1).repeat(settings.patch, 2)[:, :height, :width]
    rms = np.sqrt((noise**2).mean((1, 2, 3), keepdims=True))
    return noise * (settings.strength / rms)


def _corners(count: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """(count, d) distinct corners of {-1, 1}^d."""
    found: set[bytes] = set()
    corners: list[np.ndarray] = []
    while len(corners) < count:
        corner = rng.choice([-1.0, 1.0], d)
        if corner.tobytes() not in found:
            found.add(corner.tobytes())
            corners.append(corner)
    return np.stack(corners)
