"""scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels; UCI ML Repository, CC BY 4.0): the embedded default.

Images are enlarged to 16 x 16 (bilinear) and rounded to uint8. Each has one affine copy (rotation up to 10 degrees,
scale up to 10 % either way, shift up to 8 % of the side), so that a small network has something to learn from. An
image and its copy are always in the same split: with the default test fraction of 0.2, 2,874 training and 720 test
rows.
"""

import numpy as np
from jaxtyping import Float

from decant.data.sources.base import Source, array_split

SIDE = 16
MAX_DEGREES, MAX_SCALE, MAX_SHIFT = 10.0, 0.1, 0.08


def open_digits(test_fraction: float, rng: np.random.Generator) -> Source:
    """The digits, enlarged and with distorted copies, divided into training and test rows."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    base = enlarged(bunch.images * (255 / 16))  # (1797, 16, 16) float, grey levels 0 to 255
    copies = np.stack([affine_copy(image, rng) for image in base])
    order = rng.permutation(len(base))
    held_out = int(np.ceil(test_fraction * len(base)))
    splits, first_id = [], 0
    for chosen in (np.sort(order[held_out:]), np.sort(order[:held_out])):
        pairs = np.stack([base[chosen], copies[chosen]], axis=1)  # (n, 2, 16, 16): a base image, then its copy
        pixels = np.clip(np.rint(pairs.reshape(-1, SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
        splits.append(array_split(pixels, bunch.target[chosen].repeat(2), first_id, "digits"))
        first_id += len(pixels)
    return Source(tuple(map(str, bunch.target_names)), splits[0], splits[1])


def enlarged(images: Float[np.ndarray, "n 8 8"]) -> Float[np.ndarray, "n 16 16"]:
    """Resizes by bilinear interpolation with aligned pixel centres (torch's align_corners=False)."""
    small = images.shape[1]
    centres = np.clip((np.arange(SIDE) + 0.5) * small / SIDE - 0.5, 0, small - 1)
    weights = np.clip(1 - np.abs(centres[:, None] - np.arange(small)), 0, 1)  # (16, 8), each row sums to 1
    return weights @ images @ weights.T


def affine_copy(image: Float[np.ndarray, "h w"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Rotates the image, scales it about its centre and shifts it, by random amounts; bilinear, black outside."""
    from scipy import ndimage

    angle = np.deg2rad(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    scale = 1 + rng.uniform(-MAX_SCALE, MAX_SCALE)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2) * SIDE
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (SIDE - 1) / 2
    return ndimage.affine_transform(image, rotation, offset=centre - rotation @ (centre + shift), order=1)
