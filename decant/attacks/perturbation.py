"""A published perturbation from a file, for unlearnable examples that other code made.

For perturbations that cost GPU days or need another framework: NTGA (Yuan & Wu, "Neural tangent generalization
attacks", ICML 2021) needs JAX and infinite-width kernels, and its authors publish the perturbations; the same holds for
the originals of REM, TAP and SEP. What is added to a row is

    x + scale * file[i]      i = the row's id (its place in the source) where the file has one per row,
                             the row's label where it has one per class

``path`` is a `.npy` (numbers only: no pickle) or a `.safetensors` with one tensor, of shape (n, h, w, c) or
(n, c, h, w), n at least the largest id + 1, or (classes, ...). Put it into data/inputs, so that it travels with the
project. PyTorch files (`.pt`) can run code when they are opened and are refused: convert one where you trust it.

Cost: reads the file once; rows that it doesn't use stay on disk for `.npy`. Expected: what its paper reports.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Num

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction

KIND = "unlearnable"


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    path: str = ""
    """The file, `.npy` or `.safetensors`."""
    scale: float | None = None
    """Grey levels per unit of the file; null: 255 for floats (images in [0, 1]), 1 for whole numbers."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    delta = channels_last(read(Path(settings.path)), images.shape, settings.path)
    scale = settings.scale if settings.scale is not None else 255.0 if delta.dtype.kind == "f" else 1.0
    rows = perturbed_rows(images, settings.rate, rng, key="perturbation.rate")
    chosen = delta[index_of(images, len(delta), settings.path)[rows]]
    if not np.isfinite(chosen).all():
        raise SettingsError(f"perturbation.path: {settings.path} holds NaN or infinity")
    return add_perturbations(images, rows, chosen.astype(np.float32) * scale)


def read(path: Path) -> np.ndarray:
    """The array in the file. Raises: SettingsError where there is none that can be read safely."""
    if not path.is_file():
        raise SettingsError(f"perturbation.path: a .npy or .safetensors file expected, none at '{path}'")
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise SettingsError(f"perturbation.path: {path} is not a .npy array of numbers: {error}") from error
    elif path.suffix == ".safetensors":
        array = _only_tensor(path)
    else:
        raise SettingsError(f"perturbation.path: {path}: a .npy or .safetensors file expected; convert it first")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise SettingsError(f"perturbation.path: {path}: one array of numbers expected, {array!r:.60} found")
    return array


def _only_tensor(path: Path) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:  # KeyError: a kind of number that NumPy lacks, as bfloat16
        raise SettingsError(f"perturbation.path: {path} can't be read as safetensors: {error!r}") from error
    if len(tensors) != 1:
        raise SettingsError(f"perturbation.path: {path}: one tensor expected, {len(tensors)} found")
    return next(iter(tensors.values()))


def channels_last(
    delta: Num[np.ndarray, "m _ _ _"], shape: tuple[int, int, int], path: str
) -> Num[np.ndarray, "m h w c"]:
    """A view of (m, h, w, c) or (m, c, h, w) with the channels last. Raises: SettingsError for any other shape."""
    height, width, channels = shape
    if delta.ndim == 4 and delta.shape[1:] == shape:
        return delta
    if delta.ndim == 4 and delta.shape[1:] == (channels, height, width):
        return delta.transpose(0, 2, 3, 1)
    raise SettingsError(
        f"perturbation.path: {path}: shape (rows or classes, {height}, {width}, {channels}) or "
        f"(rows or classes, {channels}, {height}, {width}) expected, {delta.shape} found"
    )


def index_of(images: Images, count: int, path: str) -> Int[np.ndarray, " n"]:
    """Which of the file's `count` perturbations each row gets. Raises: SettingsError where there are too few."""
    if count == images.classes:
        return images.labels
    if len(images) and count <= images.ids.max():
        raise SettingsError(
            f"perturbation.path: {path}: {images.classes} perturbations (one per class) or one for each row up to "
            f"id {images.ids.max()} expected, {count} found"
        )
    return images.ids
