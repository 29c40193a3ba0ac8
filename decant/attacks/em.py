"""EM: error-minimising noise (Huang et al., "Unlearnable examples: making personal data unexploitable", ICLR 2021).

A perturbation that brings the loss of a row to nearly zero leaves a network nothing to learn from it. In alternation, a
surrogate network trains on the perturbed rows for a few steps, and the perturbations descend on the surrogate's loss,
until it is wrong on hardly any perturbed row.

    min over |delta| <= strength of  min over theta of  sum CE(f_theta(x + delta), y)

``mode: sample`` has one delta per row (20 signed steps of a tenth of the bound a round, stops at an error of 1 %);
``mode: class`` one per class (one step a batch, stops at 10 %, computed on a random fifth of the rows). As in the
paper, 10 SGD steps of the surrogate a round. Changed: the surrogate is a network of ours (``network``), at the learning
rate of our training; the number of rounds is limited; perturbations are stored in whole grey levels.

Cost: 3-10 s for the 1,437 digits of 16 x 16, 340-430 s for 5,000 CIFAR-10 rows (2 CPU cores, shared with other work).
Expected: clean accuracy of small_cnn on 5,000 CIFAR-10 rows 0.62 -> 0.12 at strength 8; on the digits of the tests
0.99 -> 0.85 at 32, 0.53 to 0.94 at 48 (7 seeds).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from decant.attacks.base import Poisoned, add_perturbations, perturbed_rows
from decant.data.images import Images
from decant.settings import Block, Fraction, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from decant.attacks._surrogate import Surrogate

KIND = "unlearnable"
LEARN_STEPS = 10
STOP_ERROR = {"sample": 0.01, "class": 0.1}
CLASS_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    mode: Literal["sample", "class"] = "sample"
    """One perturbation per row, or one per class."""
    strength: Annotated[int, Field(ge=1, le=255)] = 16
    """Largest change of a pixel in grey levels (8 in the paper)."""
    network: Literal["small_cnn", "resnet18"] = "small_cnn"
    """The surrogate."""
    steps: Positive = 20
    """`sample`: signed gradient steps a round, each of a tenth of `strength`."""
    rounds: Positive = 30
    """At most that many rounds of surrogate and perturbation."""
    rate: Fraction = 1.0
    """Share of the rows that carry a perturbation."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    rows = perturbed_rows(images, settings.rate, rng, key="em.rate")
    seed = int(rng.integers(2**31))
    return add_perturbations(images, rows, perturbations(images.select(rows), settings, seed))


def perturbations(images: Images, settings: Settings, seed: int) -> Float[np.ndarray, "n h w c"]:
    """One perturbation per row, in whole grey levels."""
    from decant.attacks._surrogate import Surrogate, grey_levels

    if not len(images):
        return np.zeros(images.pixels.shape)
    surrogate = Surrogate(images, settings.network, seed=seed)
    delta = sample_wise(surrogate, settings) if settings.mode == "sample" else class_wise(surrogate, settings)
    return grey_levels(delta, settings.strength)


def sample_wise(surrogate: "Surrogate", settings: Settings) -> 'Float[Tensor, "n c h w"]':
    """delta with one perturbation per row."""
    from torch.nn import functional as F

    from decant.attacks._surrogate import pgd

    def loss(rows: "Tensor", inputs: "Tensor") -> "Tensor":
        return F.cross_entropy(surrogate.logits(inputs), surrogate.y[rows], reduction="sum")

    delta, radius = surrogate.zeros(), settings.strength / 255
    for _ in range(settings.rounds):
        surrogate.learn(LEARN_STEPS, delta)
        delta = pgd(surrogate.x, delta, loss, radius=radius, step=radius / 10, steps=settings.steps)
        if surrogate.error(delta) < STOP_ERROR["sample"]:
            break
    return delta


def class_wise(surrogate: "Surrogate", settings: Settings) -> 'Float[Tensor, "n c h w"]':
    """delta with the same perturbation on every row of a class."""
    import torch
    from torch.nn import functional as F

    from decant.attacks._surrogate import BATCH
    from decant.models.training import as_float

    radius, x, y = settings.strength / 255, surrogate.x, surrogate.y
    of_class = torch.zeros((surrogate.classes, *x.shape[1:]), device=x.device)
    seen = max(1, round(CLASS_SHARE * len(x)))
    some = torch.randperm(len(x), generator=surrogate.generator)[:seen].to(x.device)
    for _ in range(settings.rounds):
        surrogate.learn(LEARN_STEPS, of_class[y])
        for rows in some.split(BATCH):
            delta = of_class.clone().requires_grad_(True)
            inputs = (as_float(x[rows]) + delta[y[rows]]).clamp(0, 1)
            (gradient,) = torch.autograd.grad(F.cross_entropy(surrogate.logits(inputs), y[rows]), delta)
            of_class = (of_class - radius / 10 * gradient.sign()).clamp_(-radius, radius)
        if surrogate.error(of_class[y]) < STOP_ERROR["class"]:
            break
    return of_class[y]
