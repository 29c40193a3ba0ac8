"""Two-stage purification with D-VAE: fit, subtract the perturbation, fit again, reconstruct.

Algorithm 1 of Yu et al., ICML 2024. x0 are the images as received, x3 the purified ones:

    1. fit on x0 with a small rate limit;  x1 = clamp(x0 - p^(x0))
    2. fit on x1 with a larger one;        x2 = clamp(x1 - p^(x1));  x3 = clamp(x^(x2))

Network, objective, presets and the paper's symbols: `decant.purify.dvae`. Fitting holds a bounded sample of the rows in
memory; the inferences run batch by batch, so that a dataset larger than memory streams through them.

Cost: `small` on 2,874 digits of 16 x 16: about 15 s a stage on two CPU cores. `standard` on CIFAR-10 wants a GPU.
Expected: 98.0 % clean accuracy on digits under LSP, where training on them as received gives 76.5 %
(`decant.purify.methods.dvae`); more in docs/methods/dvae.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from decant.data.images import Images
from decant.data.tables import ImagesWriter, PerturbationsWriter, iter_images
from decant.models.training import as_float, epochs_of_batches, labels_to_device, step, to_device
from decant.purify.dvae import DVAE, Recipe, loss, recipe
from decant.purify.settings import PurifySettings, PurifyStageSettings
from decant.runtime import device
from decant.streams import child, torch_stream

LR = 5e-3
GRADIENT_NORM = 5.0
LIMITS = (0.25, 0.75)  # nats per pixel, stages 1 and 2: the paper's 1.0 and 3.0 per position
FLOOR_STARTS = 1 / 6  # of the training: epoch 10 of 60 in the official code
INFERENCE_BATCH = {"cpu": 64, "cuda": 512}  # a CPU gains nothing from more, and each row of 32 x 32 takes 2 MiB


@dataclass(frozen=True)
class PurifyStage:
    """One of the two stages: network and length of training, rate limit, objective."""

    recipe: Recipe
    kld_limit: float
    """Nats per pixel."""
    objective: str = "code"

    @classmethod
    def of(cls, settings: PurifySettings, stage: PurifyStageSettings, images: Images) -> "PurifyStage":
        """The stage as params.yaml has it, for images of that size and number."""
        return cls(recipe(settings, images, epochs=stage.epochs), stage.kld_limit, settings.objective)

    def steps(self, n: int) -> int:
        """Optimiser steps of a fit on n rows (for a progress bar's total)."""
        return self.recipe.epochs_for(n) * max(1, n // self.recipe.batch_size)


def fit(images: Images, stage: PurifyStage, *, seed: int, on_step: Callable[[], None] = lambda: None) -> DVAE:
    """A D-VAE trained on the rows and their given labels, in eval mode, on the device.

    Nothing is augmented: u_y is bound to positions. `on_step` is called after each optimiser step.
    """
    dev, chosen = device(), stage.recipe
    model = initialised(images, chosen, seed=seed).to(dev).to(memory_format=torch.channels_last)
    latent = torch_stream(seed, "dvae", "latent", device=dev)
    x, y = to_device(images.pixels), labels_to_device(images.labels)
    order, epochs = torch_stream(seed, "dvae", "batches"), chosen.epochs_for(len(images))
    batches = epochs_of_batches(len(images), chosen.batch_size, epochs, order)
    full = (rows for rows in batches if len(rows) == min(chosen.batch_size, len(images)))
    optimizer, steps = torch.optim.Adam(parameter_groups(model), lr=LR), stage.steps(len(images))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    low_precision = dev.type == "cuda" and not chosen.as_published
    for done, rows in enumerate(full):
        batch, labels = as_float(x[rows.to(dev)]), y[rows.to(dev)]
        with torch.autocast(dev.type, torch.bfloat16, enabled=low_precision):
            x_hat, p_hat, kld = model(batch, labels, latent)
        value = loss(
            batch, x_hat, p_hat, kld,
            kld_limit=stage.kld_limit, with_floor=done >= FLOOR_STARTS * steps, objective=stage.objective,
        )  # fmt: skip
        step(optimizer, value, clip=GRADIENT_NORM)
        schedule.step()
        on_step()
    return model.eval()


def initialised(images: Images, chosen: Recipe, *, seed: int) -> DVAE:
    """A D-VAE with fresh weights, which follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(seed, "dvae", "weights"))
        return DVAE(images.shape, images.classes, chosen)


def parameter_groups(model: DVAE) -> list[dict[str, Any]]:
    """Adam's two groups: the class embedding has a learning rate of its own."""
    rest = [parameter for name, parameter in model.named_parameters() if not name.startswith("embedding.")]
    return [{"params": rest}, {"params": model.embedding.parameters(), "lr": LR * model.recipe.embedding_lr}]


@dataclass
class Inference:
    """A fitted D-VAE applied to parts of a dataset, one after the other, in the rows' order.

    z is sampled, as in the official code, from one random generator that goes on from part to part.
    """

    model: DVAE
    seed: int

    def __post_init__(self) -> None:
        self._latent = torch_stream(self.seed, "dvae", "inference", device=device())

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """(x^, p^) of images in [0, 1] and their labels."""
        x_hat, p_hat, _ = self.model(x, y, self._latent)
        return x_hat, p_hat

    def first_stage(self, images: Images) -> tuple[Images, Float16[np.ndarray, "n h w c"]]:
        """(x1, p^) where x1 = clamp(x0 - p^(x0))."""
        return self._over_batches(images, lambda x, y, p_hat: x - p_hat)

    def second_stage(self, images: Images) -> tuple[Images, Float16[np.ndarray, "n h w c"]]:
        """(x3, p^) where x2 = clamp(x1 - p^(x1)), kept in float, and x3 = x^(x2)."""
        return self._over_batches(images, lambda x, y, p_hat: self((x - p_hat).clamp(0, 1), y)[0])

    def _over_batches(
        self, images: Images, result: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Images, Float16[np.ndarray, "n h w c"]]:
        pixels, perturbations = np.empty_like(images.pixels), np.empty(images.pixels.shape, np.float16)
        batch = INFERENCE_BATCH[device().type]
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            x, y = as_float(to_device(images.pixels[rows])), labels_to_device(images.labels[rows])
            _, p_hat = self(x, y)
            pixels[rows] = to_uint8(result(x, y, p_hat))
            perturbations[rows] = p_hat.permute(0, 2, 3, 1).to(torch.float16).cpu().numpy()
        return images.with_pixels(pixels), perturbations


def to_uint8(x: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """Images in [0, 1] as stored pixels, rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Whole datasets
# ---------------------------------------------------------------------------------------------------------------------

Parts = Iterator[tuple[Images, Float16[np.ndarray, "n h w c"]]]
"""Images of some rows, and the perturbations removed from them."""


def untouched(path: Path) -> Parts:
    """The table's rows as they are, with perturbations of zero."""
    return ((part, np.zeros(part.pixels.shape, np.float16)) for part in iter_images(path))


def write_parts(parts: Parts, images_path: Path, perturbations_path: Path) -> tuple[int, float]:
    """Writes images and perturbations part by part. Returns (rows, RMS of the perturbations in grey levels)."""
    first = next(parts)
    shape, info = first[0].shape, first[0].info
    rows, squares = 0, 0.0
    with (
        ImagesWriter(images_path, shape, info) as images,
        PerturbationsWriter(perturbations_path, shape) as perturbations,
    ):
        for part, perturbation in chain([first], parts):
            images.write_images(part)
            perturbations.write_perturbations(part.ids, perturbation)
            rows += len(part)
            squares += float((perturbation.astype(np.float32) ** 2).sum(dtype=np.float64))
    return rows, 255 * (squares / (rows * int(np.prod(shape)))) ** 0.5


def purify(
    images: Images, settings: PurifySettings, limits: tuple[float, float] = LIMITS, *, seed: int
) -> tuple[Images, Images]:
    """(x1, x3): both stages in memory, for library code and benchmarks; the pipeline streams instead."""
    chosen = recipe(settings, images)
    first_seed, second_seed = child(seed, "purify_1"), child(seed, "purify_2")
    first = fit(images, PurifyStage(chosen, limits[0], settings.objective), seed=first_seed)
    x1, _ = Inference(first, first_seed).first_stage(images)
    second = fit(x1, PurifyStage(chosen, limits[1], settings.objective), seed=second_seed)
    return x1, Inference(second, second_seed).second_stage(x1)[0]
