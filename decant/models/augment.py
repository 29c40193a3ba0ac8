"""Random augmentations of a batch of images: shifts by whole pixels, mirroring, affine maps.

Every image gets draws of its own, from the generator that is passed: one on the CPU or one on the images' device.
Values stay in the range that they came in. Through `random_shift` and `random_flip` gradients pass to the images, and
deterministically so on a GPU, too; `random_affine` has no deterministic backward pass there, so use it on images that
need no gradient.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def augmented(
    x: Float[Tensor, "n c h w"], kind: Literal["none", "shift", "shift_flip"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Apply the augmentation of that name, as `train.augment` has it."""
    if kind == "none":
        return x
    x = random_shift(x, generator)
    return random_flip(x, generator) if kind == "shift_flip" else x


def random_shift(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Translate each image by up to 1/8 of its height, in whole pixels; borders are reflected."""
    n, _, height, width = x.shape
    reach = max(1, height // 8)
    offsets = torch.randint(-reach, reach + 1, (2, n), generator=generator, device=generator.device).to(x.device)
    rows = reflected(offsets[0][:, None] + torch.arange(height, device=x.device), height)  # (n, h)
    columns = reflected(offsets[1][:, None] + torch.arange(width, device=x.device), width)  # (n, w)
    index = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def reflected(places: Tensor, size: int) -> Tensor:
    """Mirror the places beyond a border to as far inside it.

    The same as ``F.pad(mode="reflect")``, whose backward pass has no deterministic form on a GPU.
    """
    return size - 1 - (size - 1 - places.abs()).abs()


def random_flip(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Mirror each image left to right with probability 1/2."""
    mirrored = _uniform(x, 0, 1, generator) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The ranges that `random_affine` draws from, uniformly."""

    rotation: float = 0
    """Radians, either way."""
    scale: tuple[float, float] = (1, 1)
    """From and to; above 1 enlarges."""
    shear: float = 0
    """Radians, either way: the angle by which upright lines lean."""
    shift: float = 0
    """Share of half a side, either way, in each direction."""
    padding: Literal["zeros", "border"] = "zeros"
    """What stands where the image ended: black, or its outermost pixels repeated."""


def random_affine(x: Float[Tensor, "n c h w"], ranges: Affine, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Rotate, shear, scale and shift each image by its own draws; bilinear."""
    angle = _uniform(x, -ranges.rotation, ranges.rotation, generator)
    scale = _uniform(x, *ranges.scale, generator)
    shear = _uniform(x, -ranges.shear, ranges.shear, generator)
    shift = _uniform(x, -ranges.shift, ranges.shift, generator, 2)
    grid = F.affine_grid(affine_matrices(angle, scale, shear, shift), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=ranges.padding, align_corners=False)


def affine_matrices(
    angle: Float[Tensor, " n"], scale: Float[Tensor, " n"], shear: Float[Tensor, " n"], shift: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 2 3"]:
    """Maps from output to input coordinates, both in [-1, 1] across the image:

    x_in = R(angle) [[1, tan shear], [0, 1]] x_out / scale + shift
    """
    cos, sin, lean = angle.cos(), angle.sin(), shear.tan()
    linear = torch.stack([cos, cos * lean - sin, sin, sin * lean + cos], 1).view(-1, 2, 2) / scale[:, None, None]
    return torch.cat([linear, shift[:, :, None]], 2)


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator, *shape: int) -> Float[Tensor, "n ..."]:
    """Draw uniformly for each row of `x`, on its device."""
    drawn = torch.rand((len(x), *shape), generator=generator, device=generator.device).to(x.device)
    return low + (high - low) * drawn
