"""The one training loop for classifiers.

The whole set lives on the device as uint8, batches are index gathers, augmentation runs batched on the device; there is
no DataLoader and no ``.item()`` inside the loop. SGD with Nesterov momentum on a OneCycle schedule. On a GPU the
forward pass runs in bfloat16 and channels-last; on a CPU in float32, where bfloat16 measured slower for nets this
small.

Deterministic: weights and batch order follow from `seed` alone. A method that changes how a network learns passes a
`Strategy`; the loop stays this one.

Cost: small_cnn on 2,874 digits of 16 x 16, 10 epochs: about 2 s on two CPU cores.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from decant.data.images import Images
from decant.models.augment import augmented
from decant.models.networks import Architecture, build
from decant.models.settings import TrainSettings
from decant.runtime import device

EVAL_BATCH = 2048


def to_device(pixels: np.ndarray) -> Tensor:
    """(n, h, w, c) uint8 array to a (n, c, h, w) uint8 tensor on the device: a channels-last view, no reordering."""
    if not pixels.flags.writeable:  # Arrow's buffers are read-only, which torch only warns about
        pixels = pixels.copy()
    return torch.from_numpy(pixels).to(device()).permute(0, 3, 1, 2)


def labels_to_device(labels: np.ndarray) -> Tensor:
    """(n,) int64 tensor on the device."""
    return torch.from_numpy(labels.astype(np.int64)).to(device())


def as_float(batch: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return batch.to(torch.float32).div_(255)


def epochs_of_batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> list[Tensor]:
    """Index batches of `epochs` shuffled passes; a last batch of one row would break batch normalisation: dropped."""
    batches: list[Tensor] = []
    for _ in range(epochs):
        batches += torch.randperm(n, generator=generator).split(batch_size)
    return [batch for batch in batches if len(batch) > 1]


def steps_of(rows: int, settings: TrainSettings) -> int:
    """Optimiser steps of one `train_classifier` on so many rows (for a progress bar's total)."""
    batches, rest = divmod(rows, settings.batch_size)
    return settings.epochs * (batches + (rest > 1))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a strategy sees of one step."""

    inputs: Tensor  # (n, c, h, w) float32 in [0, 1], augmented
    labels: Tensor  # (n,) int64
    progress: float
    """Share of the steps that lie behind, in [0, 1)."""
    generator: torch.Generator
    """The run's own, on the CPU: every random draw comes from it."""


class Strategy:
    """How a network learns from a batch. This one is plain training; a method overrides what it changes."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.inputs).float(), batch.labels)

    def groups(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """The parameters, divided by learning rate; asked for once, before the first step."""
        return [list(model.parameters())]

    def rates(self, progress: float) -> Sequence[float]:
        """Of each group, as a multiple of the schedule's learning rate; asked for before every step."""
        return [1.0]


def train_classifier(
    images: Images,
    settings: TrainSettings,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    strategy: Strategy | None = None,
    start: nn.Module | None = None,
) -> nn.Module:
    """A classifier trained on the rows as they are, plainly unless a `strategy` is given; from the weights of `start`
    (which stays as it is) instead of fresh ones, where that is given.

    Returns: the network in eval mode, on the device. `on_step` is called after each optimiser step.
    """
    strategy = strategy or Strategy()
    dev = device()
    generator = torch.Generator().manual_seed(seed)
    model = build(architecture_of(images, settings), seed=seed) if start is None else deepcopy(start)
    model = model.to(dev).to(memory_format=torch.channels_last).train()
    x, y = to_device(images.pixels), labels_to_device(images.labels)
    optimizer = torch.optim.SGD(
        [{"params": group} for group in strategy.groups(model)],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    batches = epochs_of_batches(len(images), settings.batch_size, settings.epochs, generator)
    schedule = one_cycle(optimizer, settings.lr, len(batches))
    for done, indices in enumerate(batches):
        rows, progress = indices.to(dev), done / len(batches)
        inputs = augmented(as_float(x[rows]), settings.augment, generator)
        batch = Batch(inputs=inputs, labels=y[rows], progress=progress, generator=generator)
        for group, rate in zip(optimizer.param_groups, strategy.rates(progress), strict=True):
            group["lr"] *= rate  # the schedule writes it anew after each step
        with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
            loss = strategy.loss(model, batch)
        step(optimizer, loss)
        schedule.step()
        on_step()
    return model.eval()


def step(optimizer: Optimizer, loss: Float[Tensor, ""], *, clip: float | None = None) -> None:
    """Take one optimisation step along the gradient of `loss`, whose norm is limited to `clip` where that is given."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def one_cycle(optimizer: Optimizer, rate: float, steps: int) -> OneCycleLR:
    """Up to `rate` in the first fifth of so many steps, then down to almost nothing."""
    total = max(steps + 1, 6)  # below six the warm-up has no length, and OneCycleLR divides by zero
    return OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.2)


def architecture_of(images: Images, settings: TrainSettings) -> Architecture:
    return Architecture(name=settings.network, shape=images.shape, class_names=images.info.class_names)


@torch.no_grad()
def predict(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Logits (n, classes) float32 of uint8 pixels (n, h, w, c)."""
    model = model.to(device()).eval()
    parts = [model(as_float(batch)).float().cpu() for batch in to_device(pixels).split(EVAL_BATCH)]
    return torch.cat(parts).numpy()


def accuracy(model: nn.Module, images: Images) -> float | None:
    """Share of rows whose label the model predicts; None where there are no rows to ask."""
    if not len(images):
        return None
    return float((predict(model, images.pixels).argmax(1) == images.labels).mean())
