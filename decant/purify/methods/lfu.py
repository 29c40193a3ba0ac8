"""LFU: orthogonal projection (Sandoval-Segura et al., "What Can We Learn from Unlearnable Datasets?", NeurIPS 2023).

A perturbation that a linear model separates by class lies along that model's weight vectors. So a linear classifier is
fitted on the raw pixels, its K weight vectors are made orthonormal, and every image is projected onto their orthogonal
complement; a network then trains on the projections with strong augmentation and CutMix.

    W = argmin CE(W' x, y)  (d x K),  Q R = W,  x <- x - Q Q' x

The linear model as in the paper: no bias, SGD 0.1, 20 epochs of 1,024 rows, divided by ten after half and three
quarters. Augmentation as in the paper: rotation and shear up to 10 degrees, scale 0.8-1.2, brightness, contrast and
saturation +-20 %, CutMix for half of the batches. Changed: the projection is rounded and clipped to uint8, which leaves
a small component along Q; momentum 0.9; shifts and flips only where `train.augment` has them; no hue jitter.

It removes K directions whatever they carry. It is made for class-wise linear perturbations (LSP, OPS), fails on AR and
REM, and harms clean data where a linear model does well on clean pixels (digits) or where K is large (CIFAR-100).

Cost: about 80 s for 60,000 images of 32 x 32 x 3 (2 CPU cores, shared with other work), on top of training.
Expected: harm on digits, whose classes a linear model separates: 59.3 % clean accuracy under LSP where `none` has
76.5 %, and 24.2 % without it where `none` has 98.6 % (settings: `none`; 3 seeds, 2 CPU cores).
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.augment import Affine, random_affine
from decant.models.settings import TrainSettings
from decant.models.training import (
    Batch,
    TrainingStrategy,
    as_float,
    labels_to_device,
    step,
    to_device,
    train_classifier,
)
from decant.settings import Block, Fraction, Positive
from decant.streams import torch_stream

CHUNK = 4096  # images that are projected at a time
AFFINE = Affine(rotation=math.radians(10), shear=math.radians(10), scale=(0.8, 1.2))
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    epochs: Positive = 20
    """Passes of the linear model's training."""
    batch_size: Positive = 1024
    """Rows per step of the linear model."""
    lr: Annotated[float, Field(ge=1e-6, le=10)] = 0.1
    """Learning rate of the linear model."""
    strong_augmentation: bool = True
    """Whether the network trains with the affine maps and the colour jitter."""
    cutmix: Fraction = 0.5
    """Share of the batches that CutMix mixes."""


def clean(images: Images, settings: Settings, *, seed: int) -> Images:
    """The images without their components along Q."""
    q = linear_directions(images, settings, seed=seed)
    chunks = _flat(images).split(CHUNK)
    parts = [project(as_float(chunk), q).mul(255).round().clamp(0, 255).to(torch.uint8).cpu() for chunk in chunks]
    return images.with_pixels(torch.cat(parts).numpy().reshape(images.pixels.shape))


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    """A classifier trained on the projected images with strong augmentation and CutMix."""
    cleaned = clean(images, settings, seed=seed)
    return train_classifier(cleaned, train_settings, seed=seed, strategy=StrongAugmentation(settings))


def linear_directions(images: Images, settings: Settings, *, seed: int) -> Float[Tensor, "d k"]:
    """Q: orthonormal columns that span the weights of a linear classifier on pixels, d = h * w * c."""
    x, y = _flat(images), labels_to_device(images.labels)
    generator = torch_stream(seed, "lfu", "batches")
    weights = torch.zeros(x.shape[1], images.classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=settings.lr, momentum=0.9)
    drops = [settings.epochs // 2, settings.epochs * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    for _ in range(settings.epochs):
        for indices in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            rows = indices.to(x.device)
            loss = F.cross_entropy(as_float(x[rows]) @ weights, y[rows])
            step(optimizer, loss)
        schedule.step()
    return torch.linalg.qr(weights.detach()).Q


def project(x: Float[Tensor, "n d"], q: Float[Tensor, "d k"]) -> Float[Tensor, "n d"]:
    """x - Q Q' x of every row."""
    return x - (x @ q) @ q.T


def _flat(images: Images) -> UInt8[Tensor, "n d"]:
    """Each image as one vector of h * w * c values, on the device."""
    return to_device(images.pixels).permute(0, 2, 3, 1).reshape(len(images), -1)


class StrongAugmentation(TrainingStrategy):
    """Training with affine maps, colour jitter and CutMix."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, generator = batch.inputs, batch.generator
        if self.settings.strong_augmentation:
            with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for positions
                x = jittered(random_affine(x, AFFINE, generator), generator)
        if torch.rand((), generator=generator) >= self.settings.cutmix:
            return F.cross_entropy(model(x).float(), batch.labels)
        x, partners, share = cutmixed(x, generator)
        logits = model(x).float()
        own, other = (F.cross_entropy(logits, labels) for labels in (batch.labels, batch.labels[partners]))
        return share * own + (1 - share) * other


def jittered(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Colour jitter: brightness, contrast and saturation of each image times 0.8 to 1.2."""
    bright, contrast, colour = (0.8 + 0.4 * torch.rand(3, len(x), 1, 1, 1, generator=generator)).to(x.device)
    x = (bright * x).clamp(0, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    gray = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return (gray + colour * (x - gray)).clamp(0, 1)


def cutmixed(
    x: Float[Tensor, "n c h w"], generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], float]:
    """CutMix: a box of every image replaced by that of a shuffled copy; area drawn uniformly, centre anywhere.

    Returns: the images, the rows that they were mixed with, the share of each image that is its own.
    """
    height, width = x.shape[2:]
    partners = torch.randperm(len(x), generator=generator).to(x.device)
    side = math.sqrt(float(torch.rand((), generator=generator)))
    row, column = (float(value) for value in torch.rand(2, generator=generator))
    top, bottom = _span(row * height, side * height, height)
    left, right = _span(column * width, side * width, width)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[partners, :, top:bottom, left:right]
    return mixed, partners, 1 - (bottom - top) * (right - left) / (height * width)


def _span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """From and to along one side, cut at 0 and at `limit`."""
    return max(0, round(centre - length / 2)), min(limit, round(centre + length / 2))
