"""SEP: self-ensemble protection (Chen et al., "Self-ensemble protection: training checkpoints are good data
protectors", ICLR 2023).

The checkpoints of one training run disagree enough to be an ensemble. Every row's features, under each checkpoint, are
moved to the mean features of another class; a network that trains on the row under its own label learns what belongs
to the other one.

    delta = argmin over |delta| <= strength of  mean over k of ||h_k(x + delta) - mean h_k(class (y + K/2) mod K)||^2

h_k: what goes into checkpoint k's last layer, averaged over its features. The gradient is that of all checkpoints at
once; with ``svre`` it is variance-reduced over them: within a step, as many single draws k of
grad_k(inner) - (grad_k(delta) - mean grad(delta)) are accumulated as there are checkpoints, each moves the inner point,
and the sum gives the outer step. What we changed: 30 signed steps of an eighth of the bound as in the paper, but 6
checkpoints by default (30; 15 with svre), from a shorter training at a constant rate; noise in whole grey levels.

Cost: 20-45 s for the 1,437 digits of 16 x 16, 180 s with svre (2 CPU cores, shared with other work).
Expected: clean accuracy of small_cnn on the digits of the tests 0.99 -> 0.77-0.80 at strength 32 (0.76-0.85 with svre),
0.47-0.59 at 48; 16 does nothing there.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from decant.attacks.base import Poisoned, add_noise, carriers
from decant.data.images import Images
from decant.settings import Block, Fraction, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from decant.attacks._surrogate import Surrogate

KIND = "noise"


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels (2 and 8 in the paper)."""
    network: Literal["small_cnn", "resnet18"] = "small_cnn"
    """The surrogate."""
    epochs: Positive = 12
    """Of the surrogate's training on clean rows (120 in the paper)."""
    checkpoints: Positive = 6
    """Taken at equal distances during it."""
    steps: Positive = 30
    """Signed gradient steps, each of an eighth of `strength`."""
    svre: bool = False
    """Reduce the variance over the checkpoints; three times the cost."""
    rate: Fraction = 1.0
    """Share of the rows that carry noise."""


@dataclass(frozen=True)
class Checkpoint:
    features: "nn.Module"  # (m, c, h, w) -> (m, f)
    targets: "Tensor"  # (classes, f): mean features of the class that rows of each class are moved to


def poison(images: Images, settings: Settings, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    rows = carriers(images, settings.rate, rng, key="sep.rate")
    seed = int(rng.integers(2**31))
    mine = images.select(rows)
    return add_noise(images, rows, perturbations(mine, settings, seed)) if len(mine) else Poisoned(images, rows)


def perturbations(images: Images, settings: Settings, seed: int) -> np.ndarray:
    """(n, h, w, c) of whole grey levels, one per row."""
    import torch

    from decant.attacks._surrogate import PGD_BATCH, Surrogate, grey_levels

    surrogate = Surrogate(images, settings.network, seed=seed)
    ensemble = trained(surrogate, settings)
    delta = surrogate.blank()
    for rows in torch.arange(len(images), device=delta.device).split(PGD_BATCH):
        delta[rows] = _moved(surrogate, ensemble, rows, settings)
    return grey_levels(delta, settings.strength)


def trained(surrogate: "Surrogate", settings: Settings) -> list[Checkpoint]:
    """The checkpoints of one training on the clean rows."""
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


def class_means(surrogate: "Surrogate", features: "nn.Module") -> "Tensor":
    """(classes, f): mean features of each class's clean rows; 0 for a class without rows."""
    import torch
    from torch.nn import functional as F

    from decant.attacks._surrogate import PGD_BATCH, apply
    from decant.models.training import as_float

    with torch.no_grad():
        found = torch.cat([apply(features, as_float(part)) for part in surrogate.x.split(PGD_BATCH)])
    members = F.one_hot(surrogate.y, surrogate.classes).float()  # (n, classes): a product sums alike on every device
    return members.T @ found / members.sum(0).clamp(min=1)[:, None]


def _moved(surrogate: "Surrogate", ensemble: list[Checkpoint], rows: "Tensor", settings: Settings) -> "Tensor":
    """The noise of one batch."""
    import torch

    from decant.attacks._surrogate import within
    from decant.models.training import as_float

    clean, labels, radius = as_float(surrogate.x[rows]), surrogate.y[rows], settings.strength / 255
    noise = torch.zeros_like(clean)
    for _ in range(settings.steps):
        gradients = [gradient(checkpoint, clean, noise, labels) for checkpoint in ensemble]
        direction = torch.stack(gradients).mean(0)
        if settings.svre:
            order = torch.randint(0, len(ensemble), (len(ensemble),), generator=surrogate.generator).tolist()
            inner, total = noise, torch.zeros_like(noise)
            for k in order:
                total += gradient(ensemble[k], clean, inner, labels) - (gradients[k] - direction)
                inner = within(clean, inner - radius / 8 * total.sign(), radius)
            direction = total
        noise = within(clean, noise - radius / 8 * direction.sign(), radius)
    return noise


def gradient(checkpoint: Checkpoint, clean: "Tensor", noise: "Tensor", labels: "Tensor") -> "torch.Tensor":
    """Of the squared distance to the target features, with respect to the noise."""
    import torch

    from decant.attacks._surrogate import apply

    noise = noise.detach().requires_grad_(True)
    distance = (apply(checkpoint.features, clean + noise) - checkpoint.targets[labels]).square().mean(1).sum()
    return torch.autograd.grad(distance, noise)[0]
