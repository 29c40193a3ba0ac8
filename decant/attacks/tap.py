"""TAP: targeted adversarial poisoning (Fowl et al., "Adversarial examples make strong poisons", NeurIPS 2021).

A network trained on the clean rows is attacked: every row becomes an adversarial example for the next class, and keeps
its own label. A network that trains on it learns the next class's features under the wrong label.

    delta = argmin over |delta| <= strength of  E_t CE(f(t(x + delta)), (y + 1) mod classes),   t a random shift

Changed: 30 signed steps of an eighth of the bound and one start, where the paper takes 250 steps and 8 restarts and
keeps the best; t shifts as our training does (and flips where ``augment`` says so); the surrogate is a network of ours;
perturbations are stored in whole grey levels. This is no additive pattern per class: purifiers find it harder.

Cost: 5-12 s for the 1,437 digits of 16 x 16 (2 CPU cores, shared with other work).
Expected: clean accuracy of small_cnn on the digits of the tests 0.99 -> 0.77-0.83 at strength 32, 0.44-0.50 at 48; 16
does nothing there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.settings import Block, Fraction, Positive
from decant.streams import torch_stream

if TYPE_CHECKING:
    from torch import Tensor, nn

KIND = "unlearnable"


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels (8 in the paper)."""
    network: Literal["small_cnn", "resnet18"] = "small_cnn"
    """The surrogate."""
    epochs: Positive = 20
    """Epochs of the surrogate's training on clean rows (40 in the paper)."""
    steps: Positive = 30
    """Signed gradient steps, each of an eighth of `strength`."""
    augment: Literal["none", "shift", "shift_flip"] = "shift"
    """The random augmentation that the surrogate is trained with, and that the perturbation is to survive."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="tap.rate")
    seed = int(rng.integers(2**31))
    mine = images.select(rows)
    if not len(mine):
        return Poisoned(images, rows)
    return add_perturbations(images, rows, perturbations(mine, clean_surrogate(mine, settings, seed), settings, seed))


def clean_surrogate(images: Images, settings: Settings, seed: int) -> "nn.Module":
    """f, trained on the clean rows."""
    from decant.models.training import train_classifier

    recipe = TrainSettings(network=settings.network, epochs=settings.epochs, augment=settings.augment)
    return train_classifier(images, recipe, seed=seed).requires_grad_(False)


def perturbations(
    images: Images, surrogate: "nn.Module", settings: Settings, seed: int
) -> Float[np.ndarray, "n h w c"]:
    """One perturbation per row, in whole grey levels."""
    import torch
    from torch.nn import functional as F

    from decant.attacks._surrogate import apply, grey_levels, pgd
    from decant.models.augment import augmented
    from decant.models.training import labels_to_device, to_device

    x, targets = to_device(images.pixels), labels_to_device((images.labels + 1) % images.classes)
    generator = torch_stream(seed, "tap", "augmentation")

    def loss(rows: "Tensor", inputs: "Tensor") -> "Tensor":
        logits = apply(surrogate, augmented(inputs, settings.augment, generator))
        return F.cross_entropy(logits, targets[rows], reduction="sum")

    radius = settings.strength / 255
    blank = torch.zeros(x.shape, device=x.device)
    delta = pgd(x, blank, loss, radius=radius, step=radius / 8, steps=settings.steps)
    return grey_levels(delta, settings.strength)
