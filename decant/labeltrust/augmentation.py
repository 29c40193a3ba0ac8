"""Random augmentations for LabelTrust's networks, so that no small patch and no fine pattern decides a comparison.

Each row gets draws of its own, from the generator that is passed, which must be on the rows' device.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from decant.models.augment import Affine, random_affine, random_flip

AFFINE = Affine(rotation=0.26, scale=(0.85, 1.15), shear=0.2, shift=0.2, padding="border")
BLURRED, ERASED = 0.3, 0.5  # probability that an image is blurred, and that a rectangle of it is erased
REACH = (0.1, 0.2)  # half the side of an erased rectangle, as a share of the image's
MOST_NOISE = 0.1  # largest standard deviation of the pixel noise, which each image draws uniformly
DROPPED, FEATURE_NOISE = 0.2, 0.2
"""Of embeddings: share of the features set to their mean; noise, in standard deviations of a feature."""


def augment(x: Float[Tensor, "n ..."], generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """Images (n, c, h, w) in [0, 1] or standardised embeddings (n, e), each row changed by itself."""
    return augment_features(x, generator) if x.ndim == 2 else augment_images(x, generator)


def augment_features(x: Float[Tensor, "n e"], generator: torch.Generator) -> Float[Tensor, "n e"]:
    """Drop some features of each row and add noise to all."""
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= DROPPED
    return kept * x + FEATURE_NOISE * torch.randn(x.shape, generator=generator, device=x.device)


def augment_images(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Rotate, scale, shear and shift; blur some images, erase a rectangle of some; add noise to all.

    No flips: a mirrored digit is another sign.
    """
    x = random_affine(x, AFFINE, generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(_uniform(x, generator, 1, 1, 1) < BLURRED, blurred, x)
    erased = _rectangles(x, generator) & (_uniform(x, generator, 1, 1, 1) < ERASED)
    x = torch.where(erased, _uniform(x, generator, 1, 1, 1), x)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return x + MOST_NOISE * _uniform(x, generator, 1, 1, 1) * noise


def photograph_view(x: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Mirror some images; make each lighter or darker, and the contrast of each channel stronger or weaker."""
    x = random_flip(x, generator)
    contrast = 0.7 + 0.6 * _uniform(x, generator, 3, 1, 1)
    light = 0.4 * _uniform(x, generator, 1, 1, 1) - 0.2
    mean = x.mean((2, 3), keepdim=True)
    return (mean + contrast * (x - mean) + light).clamp(0, 1)


def _rectangles(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Bool[Tensor, "n 1 h w"]:
    """One random rectangle of each image."""
    height, width = x.shape[2:]
    reach = REACH[0] + (REACH[1] - REACH[0]) * _uniform(x, generator, 2, 1, 1)
    centre = _uniform(x, generator, 2, 1, 1)
    down = torch.linspace(0, 1, height, device=x.device)[None, :, None]
    across = torch.linspace(0, 1, width, device=x.device)[None, None, :]
    inside = ((down - centre[:, 0]).abs() < reach[:, 0]) & ((across - centre[:, 1]).abs() < reach[:, 1])
    return inside[:, None]


def _uniform(x: Tensor, generator: torch.Generator, *shape: int) -> Float[Tensor, "n ..."]:
    """Draws in [0, 1) for each row of x."""
    return torch.rand((len(x), *shape), generator=generator, device=x.device)
