"""Witches' Brew: correctly labelled rows with faint noise make a network mistake one chosen picture.

Geiping et al., "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching", ICLR 2021 (arXiv 2009.02276).
If training on the poisons moves the weights as training on the chosen picture x* with the wrong label t would, then x*
will be predicted t. Rows of class t are taken, their labels stay right, and their noise descends on

    B(delta) = 1 - <g*, g> / (|g*| |g|)        g* = grad_theta CE(f(x*), t)
                                               g  = grad_theta mean_i CE(f(x_i + delta_i), t)
    |delta_i| <= strength,   by Adam on the sign of dB / d delta

under a surrogate trained on the clean rows, in eval mode; the best of `restarts` random beginnings is planted. Written
from the paper's equations. Changed: several surrogates (``surrogates``), whose B are averaged, because a single small
network carries over to another seed less often; all poisons are one batch; noise in whole grey levels. x* is a picture
of the victim class drawn from the clean test rows, and the only triggered row: the only affected point too.

Cost: a training per surrogate, and per step two passes through each and back over all poisons.
Expected: no success on digits so far. B falls to 0.08-0.11, but 8 % of the rows at 64 grey levels turned none of 4
pictures (8 networks, one surrogate, 60 steps); 5 % at 32 and at 64 none of 3 (6 networks each, 100 steps).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from decant.attacks import _backdoor
from decant.attacks.base import Poisoned, add_noise, class_index, draw_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Fraction, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from decant.attacks._surrogate import Surrogate

KIND = "backdoor"
STEP = 0.1  # Adam's learning rate, in units of `strength`; it falls to a tenth at each of the shares below
FALLS = (3 / 8, 5 / 8, 7 / 8)  # the official 93, 156 and 218 of 250 steps


@dataclass(frozen=True, kw_only=True)
class Settings(_backdoor.Aim):
    rate: Fraction = 0.05
    """Share of all rows that carry noise; they are of the target class."""
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels."""
    network: Literal["small_cnn", "resnet18"] = "small_cnn"
    """The surrogates."""
    surrogates: Positive = 1
    epochs: Positive = 10
    """Of each surrogate's training."""
    steps: Positive = 250
    restarts: Positive = 2
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """What the victim's training will do to the rows, as far as the attacker knows."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Settings):
    chosen: Images
    """x*, one row with its right label."""


def prepare(train: Images, test: Images, settings: Settings, rng: np.random.Generator) -> Prepared:
    class_index(test, settings.target, key="witches_brew.target")
    pool = _backdoor.is_victim(test, settings, name="witches_brew")
    if not pool.any():
        raise SettingsError(f"witches_brew.victim: a class with test rows expected, {settings.victim} found")
    return Prepared(**vars(settings), chosen=test.select(rng.choice(np.flatnonzero(pool), 1)))


def trigger(images: Images, settings: Prepared, rng: np.random.Generator) -> Images:
    """x*, labelled as the attacker wants it predicted."""
    return settings.chosen.with_labels(np.array([settings.target]))


def poison(images: Images, settings: Prepared, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    pool = (images.labels == settings.target) & ~spared
    rows = draw_rows(pool, round(settings.rate * len(images)), rng, key="witches_brew.rate")
    return add_noise(images, rows, perturbations(images, rows, settings, int(rng.integers(2**31))))


def perturbations(images: Images, rows: np.ndarray, settings: Prepared, seed: int) -> np.ndarray:
    """Noise (rows.sum(), h, w, c) in whole grey levels for those rows."""
    import torch

    from decant.attacks._surrogate import Surrogate, grey_levels
    from decant.models.training import as_float, to_device

    surrogates = [Surrogate(images, settings.network, seed=seed + k) for k in range(settings.surrogates)]
    for surrogate in surrogates:
        surrogate.learn_epochs(settings.epochs)
        surrogate.model.requires_grad_(True)
    x = surrogates[0].x[torch.from_numpy(np.flatnonzero(rows))]
    chosen = as_float(to_device(settings.chosen.pixels))
    wanted = [gradient_of(surrogate, chosen, settings.target, graph=False) for surrogate in surrogates]
    generator = torch.Generator().manual_seed(seed)
    tries = [matched(surrogates, wanted, as_float(x), settings, generator) for _ in range(settings.restarts)]
    best, _ = min(tries, key=lambda found: found[1])
    return grey_levels(best, settings.strength)


def matched(
    surrogates: "list[Surrogate]", wanted: "list[Tensor]", x: "Tensor", settings: Settings, generator: "torch.Generator"
) -> "tuple[Tensor, float]":
    """(noise (n, c, h, w) for the rows x, in [0, 1] units; the B that it reaches)."""
    import torch

    from decant.attacks._surrogate import within
    from decant.models.augment import augmented

    radius = settings.strength / 255
    start = torch.randn(x.shape, generator=generator).to(x.device) * radius
    delta = within(x, start, radius).requires_grad_(True)
    optimizer = torch.optim.Adam([delta], lr=STEP * radius)
    falls = [round(share * settings.steps) for share in FALLS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls)
    for _ in range(settings.steps):
        inputs = augmented(x + delta, settings.augment, generator)
        loss = mismatch(surrogates, wanted, inputs, settings.target)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            delta.copy_(within(x, delta, radius))
    return delta.detach(), mismatch(surrogates, wanted, x + delta, settings.target).item()


def mismatch(surrogates: "list[Surrogate]", wanted: "list[Tensor]", inputs: "Tensor", target: int) -> "Tensor":
    """B, averaged over the surrogates."""
    import torch
    from torch.nn import functional as F

    found = [gradient_of(surrogate, inputs, target, graph=True) for surrogate in surrogates]
    return torch.stack([1 - F.cosine_similarity(a, b, dim=0) for a, b in zip(found, wanted, strict=True)]).mean()


def gradient_of(surrogate: "Surrogate", inputs: "Tensor", target: int, *, graph: bool) -> "Tensor":
    """Of the mean cross-entropy of the inputs as `target`, by all parameters, as one vector."""
    import torch
    from torch.nn import functional as F

    labels = torch.full((len(inputs),), target, device=inputs.device)
    loss = F.cross_entropy(surrogate.logits(inputs), labels)
    gradients = torch.autograd.grad(loss, list(surrogate.model.parameters()), create_graph=graph)
    return torch.cat([gradient.flatten() for gradient in gradients])
