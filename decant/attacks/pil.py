"""PIL: perturbation-induced linearisation (ICLR 2026).

Networks that rely on a linear shortcut stop learning the images. The only surrogate is a linear classifier W, trained
on the clean rows. The perturbation alone is made to tell W its class, while the perturbed image tells W nothing.

    delta = argmin over |delta| <= strength of  0.9 CE(W(-delta), y) + 0.1 KL(uniform || softmax W(x + delta))

The paper writes the same with the opposite sign, and publishes x - delta. 30 signed steps of a tenth of the bound; the
linear classifier has a bias, Adam 3e-3, 30 epochs. Changed: perturbations are stored in whole grey levels.

Cost: 20-35 s for 5,000 CIFAR-10 rows (2 CPU cores, shared with other work).
Expected: clean accuracy of small_cnn on 5,000 CIFAR-10 rows 0.62 -> 0.32 at strength 8, 0.20 at 16; on the digits of
the tests 0.99 -> 0.62-0.74 at 32, 0.19-0.24 at 48.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.settings import Block, Fraction, Positive
from decant.streams import torch_stream

if TYPE_CHECKING:
    from torch import nn

KIND = "unlearnable"
LABEL_SHARE = 0.9  # of the loss: the cross-entropy of the perturbation alone
EPOCHS, LR, BATCH = 30, 3e-3, 128


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels (8 in the paper)."""
    steps: Positive = 30
    """Signed gradient steps, each of a tenth of `strength`."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="pil.rate")
    seed = int(rng.integers(2**31))
    return add_perturbations(images, rows, perturbations(images.select(rows), settings, seed))


def perturbations(images: Images, settings: Settings, seed: int) -> Float[np.ndarray, "n h w c"]:
    """One perturbation per row, in whole grey levels."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from decant.attacks._surrogate import grey_levels, pgd
    from decant.models.training import labels_to_device, to_device

    if not len(images):
        return np.zeros(images.pixels.shape)
    linear = linear_classifier(images, seed).requires_grad_(False)
    x, y = to_device(images.pixels), labels_to_device(images.labels)
    clean = x.to(torch.float32) / 255

    def loss(rows: Tensor, inputs: Tensor) -> Tensor:
        delta = inputs - clean[rows]
        label = F.cross_entropy(linear(-delta.flatten(1)), y[rows], reduction="sum")
        confidence = -F.log_softmax(linear(inputs.flatten(1)), 1).mean(1).sum()  # KL to uniform, up to a constant
        return LABEL_SHARE * label + (1 - LABEL_SHARE) * confidence

    radius = settings.strength / 255
    delta = pgd(x, torch.zeros_like(clean), loss, radius=radius, step=radius / 10, steps=settings.steps)
    return grey_levels(delta, settings.strength)


def linear_classifier(images: Images, seed: int) -> "nn.Linear":
    """W and its bias, fitted to the rows' pixels in [0, 1], flattened from (c, h, w)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from decant.models.training import as_float, epochs_of_batches, labels_to_device, step, to_device

    x, y = to_device(images.pixels), labels_to_device(images.labels)
    generator = torch_stream(seed, "pil", "batches")
    linear = nn.Linear(x[0].numel(), images.classes)
    with torch.no_grad():
        linear.weight.zero_()  # a convex problem: where it starts doesn't matter, but must not depend on global state
        linear.bias.zero_()
    linear.to(x.device)
    optimizer = torch.optim.Adam(linear.parameters(), lr=LR)
    for batch in epochs_of_batches(len(x), BATCH, EPOCHS, generator):
        rows = batch.to(x.device)
        loss = F.cross_entropy(linear(as_float(x[rows]).flatten(1)), y[rows])
        step(optimizer, loss)
    return linear
