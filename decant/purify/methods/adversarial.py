"""AT: adversarial training (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018).

A network that must be right everywhere in a small ball around each image can't rely on perturbations of that size; Tao
et al. (NeurIPS 2021) show that this also defeats unlearnable examples of no larger bound.

    min_w E max_{|d| <= e} CE(f_w(x + d), y)
    x_0 = x + a N(0, 1),  x_{t+1} = clip(x_t + a sign grad CE(f(x_t), y)) to the ball and to [0, 1],  t = 1..10

With e = 8/255 in l-inf, a = 2/255, as in D-VAE's comparison; the network is in eval mode while it is attacked.
Changed: the schedule is Decant's own (`train` settings), not 100 epochs with two drops.

Cost: 11 passes per step instead of one.
Expected: 97.3 % clean accuracy on digits under LSP where `none` has 76.5 %, and 98.8 % without it where `none` has
98.6 % (settings: `none`; 3 seeds, 2 CPU cores).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import Batch, TrainingStrategy, train_classifier
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    radius: Annotated[float, Field(ge=0, le=255)] = 8
    """Bound of the perturbation in grey levels, per pixel."""
    step: Annotated[float, Field(ge=0, le=255)] = 2
    """Step of one iteration, in grey levels."""
    iterations: Positive = 10
    """Steps of the attack (PGD)."""


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    return train_classifier(images, train_settings, seed=seed, strategy=Adversarial(settings))


class Adversarial(TrainingStrategy):
    """Training on adversarial examples of every batch."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        model.eval()
        attacked = worst_nearby(model, batch, self.settings)
        model.train()
        return F.cross_entropy(model(attacked).float(), batch.labels)


def worst_nearby(model: nn.Module, batch: Batch, settings: Settings) -> Float[Tensor, "n c h w"]:
    """Adversarial examples of a batch: inputs in [0, 1] within `radius` of its own, where PGD found a high loss."""
    radius, step, x = settings.radius / 255, settings.step / 255, batch.inputs
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    start = step * torch.randn(x.shape, generator=batch.generator).to(x.device)
    attacked = (x + start).clamp(low, high)
    for _ in range(settings.iterations):
        attacked.requires_grad_(True)
        loss = F.cross_entropy(model(attacked).float(), batch.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = (attacked.detach() + step * gradient.sign()).clamp(low, high)
    return attacked
