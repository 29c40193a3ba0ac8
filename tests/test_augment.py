"""The augmentations, against plain slicing, padding and torchvision's affine maps."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from decant.models.augment import Affine, affine_matrices, augmented, random_affine, random_flip, random_shift


def test_shift_moves_each_image_as_a_whole() -> None:
    """Every shifted image is a window of its reflected padding: checked against plain slicing."""
    x = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    moved = random_shift(x, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    for i in range(len(x)):
        windows = [padded[i, :, r : r + 16, c : c + 16] for r in range(5) for c in range(5)]
        assert any(torch.equal(moved[i], window) for window in windows)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 9), (3, 24, 20), (1, 3, 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_and_its_gradient_are_those_of_reflected_padding(shape: tuple[int, int, int], flip: bool) -> None:
    x = torch.rand(400, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    moved = augmented(first, "shift_flip" if flip else "shift", torch.Generator().manual_seed(1))
    expected, offsets = padded_and_cut(second, torch.Generator().manual_seed(1), flip=flip)
    reach = max(1, shape[1] // 8)
    assert len(set(offsets)) == (2 * reach + 1) ** 2  # every shift occurs
    assert torch.equal(moved, expected)
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * y).sum(), z)[0] for y, z in ((moved, first), (expected, second))]
    torch.testing.assert_close(*gradients)


def padded_and_cut(
    x: torch.Tensor, generator: torch.Generator, *, flip: bool
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """(the plain form of `augmented`, row by row; what was cut off at the top and on the left)."""
    n, _, height, width = x.shape
    reach = max(1, height // 8)
    padded = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * reach + 1, (2, n), generator=generator).tolist()
    cut = [padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(zip(down, right, strict=True))]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        cut = [image.flip(2) if turned else image for image, turned in zip(cut, mirrored, strict=True)]
    return torch.stack(cut), list(zip(down, right, strict=True))


def test_shift_can_be_differentiated_deterministically_on_a_gpu() -> None:
    """No step of its backward pass is reflected padding's, which raises there under `be_deterministic`."""
    x = torch.rand(4, 1, 16, 16, requires_grad=True)
    waiting, steps = [augmented(x, "shift_flip", torch.Generator().manual_seed(0)).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            steps.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    assert any(name.startswith("Index") for name in steps) and not any("Pad" in name for name in steps)


@pytest.mark.parametrize(("angle", "scale", "shear"), [(0.2, 1, 0), (0, 1.2, 0), (0, 0.8, 0), (0, 1, 0.15)])
def test_affine_maps_are_those_of_torchvision(angle: float, scale: float, shear: float) -> None:
    """Its angles are in degrees, and clockwise; the rest means the same."""
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = vision.affine(
        x, math.degrees(-angle), [0, 0], scale, [math.degrees(shear), 0.0], interpolation=InterpolationMode.BILINEAR
    )
    grid = F.affine_grid(affine_matrix(angle, scale, shear), [1, 1, 16, 16], align_corners=False)
    torch.testing.assert_close(F.grid_sample(x, grid, align_corners=False), expected, atol=1e-6, rtol=0)


def affine_matrix(angle: float, scale: float, shear: float) -> torch.Tensor:
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (angle, scale, shear)]
    return affine_matrices(*numbers, torch.zeros(1, 2, dtype=torch.float64))


def test_an_affine_map_is_rotation_after_shear_after_scale() -> None:
    rotation, shear, scale = (affine_matrix(*one)[0, :, :2] for one in ((0.3, 1, 0), (0, 1, 0.4), (0, 0.7, 0)))
    torch.testing.assert_close(affine_matrix(0.3, 0.7, 0.4)[0, :, :2], rotation @ shear @ scale)


def test_affine_draws_fill_their_ranges_and_no_more() -> None:
    """One bright pixel per image tells by how much the image was shifted."""
    x = torch.zeros(500, 1, 33, 33)
    x[:, 0, 16, 16] = 1
    moved = random_affine(x, Affine(shift=0.25), torch.Generator().manual_seed(0))  # 0.25 of half of 33: 4.1 pixels
    places = moved.flatten(1).argmax(1)
    for place in (places // 33, places % 33):
        assert set((place - 16).tolist()) == set(range(-4, 5))


@pytest.mark.parametrize(("padding", "corner"), [("zeros", 0.0), ("border", 1.0)])
def test_what_comes_in_at_the_borders_is_black_or_the_outermost_pixels(padding: str, corner: float) -> None:
    small = Affine(scale=(0.5, 0.5), padding=padding)  # type: ignore[arg-type]
    shrunk = random_affine(torch.ones(2, 3, 16, 16), small, torch.Generator().manual_seed(0))
    assert (shrunk[:, :, 0, 0] == corner).all() and (shrunk[:, :, 8, 8] == 1).all()


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.rand(1000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = random_flip(x, torch.Generator().manual_seed(1))
    mirrored = (seen == x.flip(3)).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], x.flip(3), x), seen)
    assert 450 < mirrored.sum() < 550
