"""The one training loop for classifiers.

The whole set lives on the device as uint8, batches are index gathers, augmentation runs batched on the device; there is
no DataLoader and no ``.item()`` inside the loop. SGD with Nesterov momentum on a OneCycle schedule. On a GPU the
forward pass runs in bfloat16 and channels-last; on a CPU in float32, where bfloat16 measured slower for nets this
small.

Deterministic: initial weights, order of the rows and augmentation follow from `seed`, each from a random stream of its
own. A method that changes how a network learns passes a `TrainingStrategy`; the loop stays this one.

Cost: small_cnn on 2,874 digits of 16 x 16, 10 epochs: about 2 s on two CPU cores.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from decant.data.images import Images
from decant.models.augment import augmented
from decant.models.networks import Architecture, build
from decant.models.settings import TrainSettings
from decant.runtime import device
from decant.streams import torch_stream

EVAL_BATCH = 2048


def to_device(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[Tensor, "n c h w"]:
    """Copy pixels to the device; the tensor is a channels-last view of them, nothing is reordered."""
    if not pixels.flags.writeable:  # Arrow's buffers are read-only, which torch only warns about
        pixels = pixels.copy()
    return torch.from_numpy(pixels).to(device()).permute(0, 3, 1, 2)


def labels_to_device(labels: Int[np.ndarray, " n"]) -> Int64[Tensor, " n"]:
    """Copy labels to the device."""
    return torch.from_numpy(labels.astype(np.int64)).to(device())


def as_float(batch: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Map grey levels 0 to 255 to [0, 1]."""
    return batch.to(torch.float32).div_(255)


def epochs_of_batches(
    n: int, batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[Int64[Tensor, " b"]]:
    """Yield the row numbers of each batch of `epochs` passes over n rows, shuffled anew before each pass.

    A last batch of one row is dropped: batch normalisation needs two.
    """
    for _ in range(epochs):
        for batch in torch.randperm(n, generator=generator).split(batch_size):
            if len(batch) > 1:
                yield batch


def steps_of(rows: int, settings: TrainSettings) -> int:
    """Count the optimisation steps of one `train_classifier` on so many rows, for a progress bar's total."""
    batches, rest = divmod(rows, settings.batch_size)
    return settings.epochs * (batches + (rest > 1))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one training step, and how far the training is."""

    inputs: Float32[Tensor, "n c h w"]
    """In [0, 1], augmented."""
    labels: Int64[Tensor, " n"]
    progress: float
    """Share of the steps that lie behind, in [0, 1)."""
    generator: torch.Generator
    """The training's own, on the CPU: a strategy draws from nothing else."""


class TrainingStrategy:
    """A training strategy: loss and learning rates. This one is plain training; a method overrides what it changes."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The loss of one step: here the mean cross-entropy."""
        return F.cross_entropy(model(batch.inputs).float(), batch.labels)

    def groups(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """Divide the parameters by learning rate; called once, before the first step."""
        return [list(model.parameters())]

    def rates(self, progress: float) -> Sequence[float]:
        """Each group's learning rate as a multiple of the schedule's; called before every step."""
        return [1.0]


def train_classifier(
    images: Images,
    settings: TrainSettings,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    strategy: TrainingStrategy | None = None,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train a classifier on the rows and their labels.

    strategy: how it learns; None: plainly. start: a network to copy the first weights from; None: random ones.
    on_step: called after each optimisation step.

    Returns: the network in eval mode, on the device.
    """
    strategy = strategy or TrainingStrategy()
    dev = device()
    order, drawn = torch_stream(seed, "training", "order"), torch_stream(seed, "training", "augmentation")
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
    steps = steps_of(len(images), settings)
    schedule = one_cycle(optimizer, settings.lr, steps)
    for done, indices in enumerate(epochs_of_batches(len(images), settings.batch_size, settings.epochs, order)):
        rows, progress = indices.to(dev), done / steps
        inputs = augmented(as_float(x[rows]), settings.augment, drawn)
        batch = Batch(inputs=inputs, labels=y[rows], progress=progress, generator=drawn)
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
    """A schedule that rises to `rate` in the first fifth of the steps, then falls to almost nothing."""
    total = max(steps + 1, 6)  # below six the warm-up has no length, and OneCycleLR divides by zero
    return OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.2)


def architecture_of(images: Images, settings: TrainSettings) -> Architecture:
    """The network of the settings, for images of that shape and those classes."""
    return Architecture(name=settings.network, shape=images.shape, class_names=images.info.class_names)


@torch.no_grad()
def predict(model: nn.Module, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
    """Compute the logits of every row, of k classes."""
    model = model.to(device()).eval()
    parts = [model(as_float(batch)).float().cpu() for batch in to_device(pixels).split(EVAL_BATCH)]
    return torch.cat(parts).numpy()


def accuracy(model: nn.Module, images: Images) -> float | None:
    """Share of rows whose label the model predicts; None where there are no rows."""
    if not len(images):
        return None
    return float((predict(model, images.pixels).argmax(1) == images.labels).mean())
