"""The two-stage purification with D-VAE: fit, infer, subtract, reconstruct (Algorithm 1 of the paper).

    1. fit on x0 with a small limit;  x1 = clamp(x0 - p^(x0))
    2. fit on x1 with a larger limit; x2 = clamp(x1 - p^(x1));  x3 = clamp(x^(x2)), the purified image

Network, objective and presets: `decant.purify.dvae`. Fitting holds a bounded sample in memory; the inferences run over batches
of rows, so that a dataset larger than memory streams through them.

Cost: `small` on 2,874 digits of 16 x 16: about 15 s a stage on two CPU cores. `standard` on CIFAR-10 wants a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decant.data.images import Images
from decant.data.tables import images_writer, iter_images, perturbations_writer
from decant.models.training import as_float, epochs_of_batches, labels_to_device, step, to_device
from decant.purify.dvae import DVAE, Recipe, loss, recipe
from decant.purify.settings import PurifySettings, PurifyStageSettings
from decant.runtime import device

LR = 5e-3
GRADIENT_NORM = 5.0
LIMITS = (0.25, 0.75)  # nats per pixel, stages 1 and 2: the paper's 1.0 and 3.0 per position
FLOOR_STARTS = 1 / 6  # of the training: epoch 10 of 60 in the official code
INFERENCE_BATCH = {"cpu": 64, "cuda": 512}  # a CPU gains nothing from more, and each row of 32 x 32 takes 2 MiB


@dataclass(frozen=True)
class Stage:
    """What one fit needs to know."""

    recipe: Recipe
    kld_limit: float
    """Nats per pixel."""
    objective: str = "code"

    @classmethod
    def of(cls, settings: PurifySettings, stage: PurifyStageSettings, images: Images) -> "Stage":
        return cls(recipe(settings, images, epochs=stage.epochs), stage.kld_limit, settings.objective)

    def steps(self, n: int) -> int:
        """Optimiser steps of a fit on n rows (for a progress bar's total)."""
        return self.recipe.epochs_for(n) * max(1, n // self.recipe.batch_size)


def fit(images: Images, stage: Stage, *, seed: int, on_step: Callable[[], None] = lambda: None) -> DVAE:
    """A D-VAE trained on the rows and their given labels, in eval mode. No augmentation: u_y is bound to positions."""
    dev, chosen = device(), stage.recipe
    order, noise = torch.Generator().manual_seed(seed), torch.Generator(dev).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DVAE(images.shape, images.classes, chosen).to(dev).to(memory_format=torch.channels_last)
    x, y = to_device(images.pixels), labels_to_device(images.labels)
    batches = epochs_of_batches(len(images), chosen.batch_size, chosen.epochs_for(len(images)), order)
    full = [rows for rows in batches if len(rows) == chosen.batch_size] or batches
    optimizer = torch.optim.Adam(parameter_groups(model), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(full))
    low_precision = dev.type == "cuda" and not chosen.as_published
    for done, rows in enumerate(full):
        batch, labels = as_float(x[rows.to(dev)]), y[rows.to(dev)]
        with torch.autocast(dev.type, torch.bfloat16, enabled=low_precision):
            x_hat, p_hat, kld = model(batch, labels, noise)
        value = loss(
            batch, x_hat, p_hat, kld,
            kld_limit=stage.kld_limit, with_floor=done >= FLOOR_STARTS * len(full), objective=stage.objective,
        )  # fmt: skip
        step(optimizer, value, clip=GRADIENT_NORM)
        schedule.step()
        on_step()
    return model.eval()


def parameter_groups(model: DVAE) -> list[dict[str, Any]]:
    """The class embedding learns at its own rate."""
    own = {id(parameter) for parameter in model.embedding.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    return [{"params": rest}, {"params": model.embedding.parameters(), "lr": LR * model.recipe.embedding_lr}]


@dataclass
class Inference:
    """A fitted D-VAE applied to parts of a dataset, one after the other, in the rows' order.

    z is sampled, as in the official code, from one generator that goes on from part to part.
    """

    model: DVAE
    seed: int

    def __post_init__(self) -> None:
        self._noise = torch.Generator(device()).manual_seed(self.seed)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, c, h, w) in [0, 1], y (n,) -> (x^, p^)."""
        x_hat, p_hat, _ = self.model(x, y, self._noise)
        return x_hat, p_hat

    def first_stage(self, images: Images) -> tuple[Images, np.ndarray]:
        """x1 = clamp(x0 - p^(x0)). Returns (x1 as images, p^ (n, h, w, c) float16)."""
        return self._over_batches(images, lambda x, y, p_hat: x - p_hat)

    def second_stage(self, images: Images) -> tuple[Images, np.ndarray]:
        """x2 = clamp(x1 - p^(x1)), kept in float; x3 = x^(x2). Returns (x3 as images, p^ (n, h, w, c) float16)."""
        return self._over_batches(images, lambda x, y, p_hat: self((x - p_hat).clamp(0, 1), y)[0])

    def _over_batches(
        self, images: Images, result: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Images, np.ndarray]:
        pixels, perturbations = np.empty_like(images.pixels), np.empty(images.pixels.shape, np.float16)
        batch = INFERENCE_BATCH[device().type]
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            x, y = as_float(to_device(images.pixels[rows])), labels_to_device(images.labels[rows])
            _, p_hat = self(x, y)
            pixels[rows] = to_uint8(result(x, y, p_hat))
            perturbations[rows] = p_hat.permute(0, 2, 3, 1).to(torch.float16).cpu().numpy()
        return images.with_pixels(pixels), perturbations


def to_uint8(x: Tensor) -> np.ndarray:
    """(n, c, h, w) in [0, 1] to (n, h, w, c) uint8, rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Whole datasets
# ---------------------------------------------------------------------------------------------------------------------

Parts = Iterator[tuple[Images, np.ndarray]]
"""Images and what was taken off them, (n, h, w, c) float16."""


def untouched(path: Path) -> Parts:
    """The table as it is, with nothing taken off."""
    return ((part, np.zeros(part.pixels.shape, np.float16)) for part in iter_images(path))


def write_parts(parts: Parts, images_path: Path, perturbations_path: Path) -> tuple[int, float]:
    """Streams the parts into two tables. Returns (rows, RMS of what was taken off in grey levels)."""
    first = next(parts)
    shape, info = first[0].shape, first[0].info
    rows, squares = 0, 0.0
    with images_writer(images_path, shape, info) as images, perturbations_writer(perturbations_path, shape) as off:
        for part, taken_off in chain([first], parts):
            images.write_images(part)
            off.write_perturbations(part.ids, taken_off)
            rows += len(part)
            squares += float((taken_off.astype(np.float32) ** 2).sum(dtype=np.float64))
    return rows, 255 * (squares / (rows * int(np.prod(shape)))) ** 0.5


def purify(
    images: Images, settings: PurifySettings, limits: tuple[float, float] = LIMITS, *, seed: int
) -> tuple[Images, Images]:
    """Both stages in memory: (x1, x3). For libraries and benchmarks; the pipeline streams instead."""
    chosen = recipe(settings, images)
    first = fit(images, Stage(chosen, limits[0], settings.objective), seed=seed)
    x1, _ = Inference(first, seed).first_stage(images)
    second = fit(x1, Stage(chosen, limits[1], settings.objective), seed=seed + 1)
    return x1, Inference(second, seed + 1).second_stage(x1)[0]
