"""SEP: self-ensemble protection (Chen et al., "Self-ensemble protection: training checkpoints are good data
protectors", ICLR 2023).

The checkpoints of one training run differ enough to be an ensemble. Every row's features, under each checkpoint, are
moved to the mean features of another class; a network that trains on the row under its own label learns the other
class's features.

    delta = argmin over |delta| <= strength of  mean over k of ||h_k(x + delta) - mean h_k(class (y + K/2) mod K)||^2

h_k: the input of checkpoint k's last layer; the squared distance is averaged over its features. The gradient is that of
all checkpoints at once. With ``svre`` (stochastic variance reduced ensemble) each outer step consists of as many inner
steps as there are checkpoints: each draws a checkpoint k, adds grad_k(inner) - (grad_k(delta) - mean grad(delta)) to a
sum, and moves the inner point along it; the sum is the direction of the outer step. Changed: 30 signed steps of an
eighth of the bound as in the paper, but 6 checkpoints by default (30; 15 with svre), from a shorter training at a
constant rate; perturbations in whole grey levels.

Cost: 20-45 s for the 1,437 digits of 16 x 16, 180 s with svre (2 CPU cores, shared with other work).
Expected: clean accuracy of small_cnn on the digits of the tests 0.99 -> 0.77-0.80 at strength 32 (0.76-0.85 with svre),
0.47-0.59 at 48; 16 does nothing there.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.settings import Block, Fraction, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.attacks._surrogate import Surrogate

KIND = "unlearnable"


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels (2 and 8 in the paper)."""
    network: Literal["small_cnn", "resnet18"] = "small_cnn"
    """The surrogate."""
    epochs: Positive = 12
    """Epochs of the surrogate's training on clean rows (120 in the paper)."""
    checkpoints: Positive = 6
    """Checkpoints, taken at equal intervals of that training."""
    steps: Positive = 30
    """Signed gradient steps, each of an eighth of `strength`."""
    svre: bool = False
    """Reduce the variance over the checkpoints; three times the cost."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


@dataclass(frozen=True)
class Checkpoint:
    """One network of the ensemble."""

    features: "nn.Module"
    """h_k: images (m, c, h, w) to features (m, f)."""
    targets: 'Float[Tensor, "k f"]'
    """For each class, the mean features of the class that its rows are moved to."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="sep.rate")
    seed = int(rng.integers(2**31))
    mine = images.select(rows)
    return add_perturbations(images, rows, perturbations(mine, settings, seed)) if len(mine) else Poisoned(images, rows)


def perturbations(images: Images, settings: Settings, seed: int) -> Float[np.ndarray, "n h w c"]:
    """One perturbation per row, in whole grey levels."""
    import torch

    from decant.attacks._surrogate import PGD_BATCH, Surrogate, grey_levels

    surrogate = Surrogate(images, settings.network, seed=seed)
    ensemble = trained(surrogate, settings)
    delta = surrogate.zeros()
    for rows in torch.arange(len(images), device=delta.device).split(PGD_BATCH):
        delta[rows] = batch_perturbations(surrogate, ensemble, rows, settings)
    return grey_levels(delta, settings.strength)


def trained(surrogate: "Surrogate", settings: Settings) -> list[Checkpoint]:
    """The checkpoints of one training run on the clean rows."""
    from decant.attacks._surrogate import BATCH

    total = settings.epochs * -(-len(surrogate) // BATCH)
    found, done = [], 0
    for k in range(1, settings.checkpoints + 1):
        surrogate.learn(total * k // settings.checkpoints - done)
        done = total * k // settings.checkpoints
        features = copy.deepcopy(surrogate.model)[:-1]  # type: ignore[index]  # a Sequential that ends in its classifier
        means = class_means(surrogate, features)
        found.append(Checkpoint(features, means.roll(-(surrogate.classes // 2), 0)))
    return found


def class_means(surrogate: "Surrogate", features: "nn.Module") -> 'Float[Tensor, "k f"]':
    """Mean features of each class's clean rows; 0 for a class without rows."""
    import torch
    from torch.nn import functional as F

    from decant.attacks._surrogate import PGD_BATCH, apply
    from decant.models.training import as_float

    with torch.no_grad():
        found = torch.cat([apply(features, as_float(part)) for part in surrogate.x.split(PGD_BATCH)])
    members = F.one_hot(surrogate.y, surrogate.classes).float()  # (n, classes): a product sums alike on every device
    return members.T @ found / members.sum(0).clamp(min=1)[:, None]


def batch_perturbations(
    surrogate: "Surrogate", ensemble: list[Checkpoint], rows: 'Int[Tensor, " m"]', settings: Settings
) -> 'Float[Tensor, "m c h w"]':
    """delta of one batch."""
    import torch

    from decant.attacks._surrogate import projected
    from decant.models.training import as_float

    clean, labels, radius = as_float(surrogate.x[rows]), surrogate.y[rows], settings.strength / 255
    delta = torch.zeros_like(clean)
    for _ in range(settings.steps):
        gradients = [gradient(checkpoint, clean, delta, labels) for checkpoint in ensemble]
        direction = torch.stack(gradients).mean(0)
        if settings.svre:
            order = torch.randint(0, len(ensemble), (len(ensemble),), generator=surrogate.generator).tolist()
            inner, total = delta, torch.zeros_like(delta)
            for k in order:
                total += gradient(ensemble[k], clean, inner, labels) - (gradients[k] - direction)
                inner = projected(clean, inner - radius / 8 * total.sign(), radius)
            direction = total
        delta = projected(clean, delta - radius / 8 * direction.sign(), radius)
    return delta


def gradient(
    checkpoint: Checkpoint,
    clean: 'Float[Tensor, "m c h w"]',
    delta: 'Float[Tensor, "m c h w"]',
    labels: 'Int[Tensor, " m"]',
) -> 'Float[Tensor, "m c h w"]':
    """Gradient of the squared distance to the target features, with respect to delta."""
    import torch

    from decant.attacks._surrogate import apply

    delta = delta.detach().requires_grad_(True)
    distance = (apply(checkpoint.features, clean + delta) - checkpoint.targets[labels]).square().mean(1).sum()
    return torch.autograd.grad(distance, delta)[0]
