"""AR: autoregressive perturbations (Sandoval-Segura et al., "Autoregressive perturbations for data poisoning", NeurIPS
2022).

Every class has its own autoregressive process per channel. A perturbation drawn from it makes one 3 x 3 filter answer
with zero everywhere, which a convolutional network learns at once. No surrogate network is trained:

    x_ij = sum over the other eight pixels of the window that ends at (i, j) of b_kc * x,   sum b_kc = 1
    delta = x  cropped by the first 4 rows and columns, scaled to RMS = strength / 255 per pixel over all channels

Each row starts from its own Gaussian noise. The coefficients b ~ N(0, 1), normalised to sum 1, are found by rejection.
A kernel is rejected when its process grows (norm above 50 in 3 trials of 32 x 32 pixels: 50 / 32 per pixel), or when an
accepted kernel's filter nearly cancels its perturbations, too (summed positive response below 10 for at most 10
classes, else 3, to a perturbation of norm 1).

Changed: both limits are stated per pixel, so that they hold for every size, and trials run at the size of the images;
the bound is an RMS, 4.6 for the paper's l2 = 1.0 on 32 x 32 x 3; gray images have one kernel per class; after 4,096
rejections the required response is halved.

Cost: 2-4 s for 5,000 CIFAR-10 rows, 1-2 s of it the search (2 CPU cores, shared).
Expected: clean accuracy of small_cnn on 5,000 CIFAR-10 rows 0.62 -> 0.23 at strength 4.6, 0.13 at 8; on the digits of
the tests 0.99 -> 0.41-0.68 at 40.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.settings import Block, Fraction

KIND = "unlearnable"
CROP = 4
CHUNK = 2048  # rows that are drawn at once: 32 MiB at 32 x 32 x 3
TRIALS = 3
LARGEST_RMS = 50 / 32
CANDIDATES = 64  # drawn at once in the search
PATIENCE = 4096  # rejections after which the required response is halved


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[float, Field(ge=0, le=255)] = 8
    """RMS of a row's perturbation in grey levels (4.6 in the paper)."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="ar.rate")
    kernels = search(images.classes, images.shape, rng)
    delta = perturbations(images.labels[rows], images.shape, kernels, settings.strength, rng)
    return add_perturbations(images, rows, delta)


def perturbations(
    labels: Int[np.ndarray, " n"],
    shape: tuple[int, int, int],
    kernels: Float[np.ndarray, "k c 3 3"],
    strength: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "n h w c"]:
    """One perturbation per label, in grey levels, each of RMS `strength`; kernels of the k classes."""
    delta = np.empty((len(labels), *shape), np.float32)
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        signal = process(kernels[labels[part]].transpose(1, 2, 3, 0), shape[:2], rng)  # (h, w, c, n)
        signal *= strength / np.sqrt((signal**2).mean((0, 1, 2)))
        delta[part] = signal.transpose(3, 0, 1, 2)
    return delta


def process(
    kernels: Float[np.ndarray, "c 3 3 n"], size: tuple[int, int], rng: np.random.Generator
) -> Float32[np.ndarray, "h w c n"]:
    """The autoregressive processes of n kernels, each from its own Gaussian start."""
    channels, _, _, n = kernels.shape
    b = kernels.transpose(1, 2, 0, 3).astype(np.float32)  # (3, 3, c, n): rows in the last axis run in one instruction
    height, width = size[0] + CROP, size[1] + CROP
    x = rng.standard_normal((height, width, channels, n), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a kernel on trial may grow without bound
        for i in range(2, height):
            above = sum(b[r, s] * x[i - 2 + r, s : width - 2 + s] for r in (0, 1) for s in (0, 1, 2))
            for j in range(2, width):
                x[i, j] = above[j - 2] + b[2, 0] * x[i, j - 2] + b[2, 1] * x[i, j - 1]
    return x[CROP:, CROP:].copy()


def search(classes: int, shape: tuple[int, int, int], rng: np.random.Generator) -> Float[np.ndarray, "k c 3 3"]:
    """Kernels of the k classes whose last entry is 0 and whose sum is 1, found by rejection."""
    *size, channels = shape
    accepted: list[np.ndarray] = []
    required = (10 if classes <= 10 else 3) * 32 / 30**2
    rejected = 0
    while len(accepted) < classes * channels:
        candidates, signals = _steady_candidates((size[0], size[1]), rng)
        for kernel, trials in zip(candidates, signals, strict=True):
            if len(accepted) < classes * channels and responses(trials, accepted).min(initial=np.inf) > required:
                accepted.append(kernel)
            else:
                rejected += 1
        rejected += CANDIDATES - len(candidates)
        if rejected >= PATIENCE:
            required, rejected = required / 2, 0
    return np.stack(accepted).reshape(classes, channels, 3, 3)


def _steady_candidates(
    size: tuple[int, int], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "m 3 3"], Float[np.ndarray, "m t h w"]]:
    """Those of CANDIDATES random kernels whose process doesn't grow, and their t trials, scaled to RMS 1."""
    kernels = rng.standard_normal((CANDIDATES, 3, 3))
    kernels[:, 2, 2] = 0
    kernels /= kernels.sum((1, 2), keepdims=True)
    signals = process(np.repeat(kernels, TRIALS, 0).transpose(1, 2, 0)[None], size, rng)[:, :, 0]
    trials = signals.transpose(2, 0, 1).reshape(CANDIDATES, TRIALS, *size)
    with np.errstate(over="ignore", invalid="ignore"):
        rms = np.sqrt((trials**2).mean((2, 3)))
        steady = (rms < LARGEST_RMS).all(1)  # false for NaN
    return kernels[steady], trials[steady] / rms[steady][..., None, None]


def responses(signals: Float[np.ndarray, "t h w"], kernels: list[np.ndarray]) -> Float[np.ndarray, " m"]:
    """Mean positive response per position of the m kernels' filters to the signals."""
    if not kernels:
        return np.empty(0)
    windows = np.lib.stride_tricks.sliding_window_view(signals, (3, 3), (1, 2))  # (t, h - 2, w - 2, 3, 3)
    filters = np.stack(kernels).reshape(-1, 9).astype(np.float32)
    filters[:, 8] = -1
    return np.maximum(windows.reshape(-1, 9) @ filters.T, 0).mean(0)
