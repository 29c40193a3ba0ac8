"""Frequency detector (Zeng et al., ICCV 2021, arXiv 2104.03413): triggers show in an image's high frequencies.

A small network learns to tell the 2-D discrete cosine transforms of images from those of the same images after one of
five manipulations; an image that it classifies as manipulated is taken to carry a trigger.

    a_i = p(manipulated | DCT of image i)        flag where a_i ≥ 0.5

As in the paper: the five manipulations (a white block, a block of noise, Gaussian noise, a shadow, another image
blended in), drawn for every batch. What we changed: our small network and training loop; the images that are not
manipulated are the training rows, since nobody has clean ones, and a few poisoned rows among thousands do no harm;
widths in pixels are those of a 32 x 32 image and shrink with smaller ones; nothing is flagged where the affected points
themselves are not classified as manipulated. Images are in [0, 1] in training and in judging; the code of Δ-Influence
judges normalised ones.

Cost: a training of EPOCHS epochs on twice ROWS images, whatever the size of the set.
"""

import dataclasses
from functools import cache
from math import pi

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.detectors.base import Detection, DetectionCase
from decant.models.settings import TrainSettings
from decant.models.training import EVAL_BATCH, Batch, TrainingStrategy, as_float, to_device, train_classifier
from decant.streams import child, stream

ROWS = 4096  # of the training set, drawn at random, that the network learns from
EPOCHS = 5
OFFICIAL_SIDE = 32  # pixels: the images for which the paper's widths were chosen
MEASURE = "probability that the image was manipulated (0 to 1)"


def judge(case: DetectionCase, points: Images) -> Detection:
    network = trained(case.train, seed=case.seed)
    scores = manipulated_probability(network, case.train.pixels)
    theirs = float(np.median(manipulated_probability(network, points.pixels)))
    name = case.class_of(points)
    if theirs < 0.5:
        return Detection.nothing(scores, f"nothing found: the points predicted {name} don't look manipulated", MEASURE)
    said = f"look manipulated, like {case.count_of(points)}"
    return case.flagging(scores >= 0.5, points, scores=scores, said=said, measure=MEASURE)


class Spectra(TrainingStrategy):
    """Training on the spectra of every batch, as it is (class 0) and manipulated (class 1)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        both = torch.cat([batch.inputs, manipulated(batch.inputs, batch.generator)])
        labels = torch.arange(2, device=both.device).repeat_interleave(len(batch.inputs))
        return F.cross_entropy(model(dct(both)).float(), labels)


def trained(images: Images, *, seed: int) -> nn.Module:
    """A network that tells spectra of images (class 0) from spectra of the same images manipulated (class 1)."""
    rows = stream(seed, "frequency", "rows").permutation(len(images))[:ROWS]
    info = dataclasses.replace(images.info, class_names=("as it is", "manipulated"))
    chosen = images.select(np.sort(rows))
    plain = Images(chosen.ids, chosen.pixels, np.zeros_like(chosen.labels), info)
    return train_classifier(
        plain, TrainSettings(epochs=EPOCHS), seed=child(seed, "frequency", "network"), strategy=Spectra()
    )


@torch.no_grad()
def manipulated_probability(network: nn.Module, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """p(manipulated | DCT) of every image."""
    parts = [network(dct(as_float(x))).float().softmax(1)[:, 1].cpu() for x in to_device(pixels).split(EVAL_BATCH)]
    return torch.cat(parts).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The cosine transform, and the five manipulations
# ---------------------------------------------------------------------------------------------------------------------


def dct(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Orthonormal 2-D DCT-II of every channel, C_h x C_wᵀ.

    In float32 also where the training rounds to bfloat16, in which the high frequencies would be lost.
    """
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        return cosines(height).to(x) @ x @ cosines(width).to(x).T


@cache
def cosines(n: int) -> Float[Tensor, "n n"]:
    """C_n of the DCT-II of n values:  C_ki = √(2 / n) cos(π (2 i + 1) k / 2 n), row 0 divided by √2."""
    k, i = torch.arange(n)[:, None], torch.arange(n)
    matrix = torch.cos(pi * (2 * i + 1) * k / (2 * n)) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def manipulated(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1], each after one of the five manipulations, drawn at random."""
    draw = torch.rand(6, len(x), 1, 1, 1, generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    others = x[torch.randperm(len(x), generator=generator).to(x.device)]
    inside = blocks(draw[1:5], x)
    deviation = (10 + 60 * draw[1]) ** 0.5 / 255  # variances of 10 to 70 grey levels
    ways = [
        torch.where(inside, torch.ones_like(x), x),
        torch.where(inside, noise.abs().clamp(max=1), x),
        x + 25 / 255 + deviation * noise,
        torch.where(half_planes(draw[1:3], x), 0.5 * x, x),
        0.7 * x + 0.3 * others,
    ]
    way = (draw[0] * len(ways)).long()  # (n, 1, 1, 1)
    return torch.stack(ways).gather(0, way.expand(x.shape)[None])[0].clamp(0, 1)


def blocks(draw: Float[Tensor, "4 n 1 1 1"], x: Float[Tensor, "n c h w"]) -> Bool[Tensor, "n 1 h w"]:
    """A square of 2 to 7 pixels in a corner of every image, up to 5 pixels from its edges; draws are in [0, 1)."""
    height, width = x.shape[2:]
    scale = min(1.0, min(height, width) / OFFICIAL_SIDE)
    side = (scale * (2 + 5 * draw[0])).round().clamp(min=1)
    margin = (scale * 5 * draw[1]).round()
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    row = torch.where(draw[2] < 0.5, row, height - 1 - row)
    column = torch.where(draw[3] < 0.5, column, width - 1 - column)
    return (row >= margin) & (row < margin + side) & (column >= margin) & (column < margin + side)


def half_planes(draw: Float[Tensor, "2 n 1 1 1"], x: Float[Tensor, "n c h w"]) -> Bool[Tensor, "n 1 h w"]:
    """One side of a random line through the middle half of every image; draws are in [0, 1)."""
    height, width = x.shape[2:]
    angle, offset = 2 * pi * draw[0], (draw[1] - 0.5) / 2
    row = torch.linspace(-0.5, 0.5, height, device=x.device)[:, None]
    column = torch.linspace(-0.5, 0.5, width, device=x.device)
    return row * angle.cos() + column * angle.sin() > offset
