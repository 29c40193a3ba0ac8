"""Frequency detector (Zeng et al., ICCV 2021, arXiv 2104.03413): triggers leave high frequencies.

A small network learns to tell the 2-D discrete cosine transform of images as they are from that of images that were
tampered with in five ways; what it takes for tampered carries a trigger.

    a_i = p(tampered | DCT of image i)        flag where a_i >= 0.5

As in the paper: the five ways (a white block, a block of noise, Gaussian noise, a shadow, another image blended in),
drawn anew for every batch. What we changed: our small network and training loop; the images "as they are" are the
training rows, since nobody has clean ones, and a few poisoned rows among thousands do no harm; widths in pixels are
those of a 32 x 32 image and shrink with smaller ones; nothing is flagged where the affected points don't look tampered.
Images are in [0, 1] in training and in judging; the code of Δ-Influence judges normalised ones.

Cost: a training of EPOCHS epochs on twice ROWS images, whatever the size of the set.
"""

import dataclasses
from functools import cache
from math import pi

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.detectors.base import Case, Detection
from decant.models.settings import TrainSettings
from decant.models.training import EVAL_BATCH, Batch, Strategy, as_float, to_device, train_classifier

ROWS = 4096  # of the training set, drawn at random, that the network learns from
EPOCHS = 5
OFFICIAL_SIDE = 32  # pixels: the images for which the paper's widths were chosen
MEASURE = "probability that the picture was tampered with (0 to 1)"


def judge(case: Case, points: Images) -> Detection:
    network = trained(case.train, seed=case.seed)
    scores = tampered_probability(network, case.train.pixels)
    theirs = float(np.median(tampered_probability(network, points.pixels)))
    name = case.name_of(points)
    if theirs < 0.5:
        return Detection.nothing(
            scores, f"nothing found: the points predicted {name} don't look tampered with", MEASURE
        )
    said = f"look tampered with, like {case.said_of(points)}"
    return case.flagging(scores >= 0.5, points, scores=scores, said=said, measure=MEASURE)


class Spectra(Strategy):
    """Every batch as it is (0) and tampered with (1), seen as frequencies."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        both = torch.cat([batch.inputs, tampered(batch.inputs, batch.generator)])
        labels = torch.arange(2, device=both.device).repeat_interleave(len(batch.inputs))
        return F.cross_entropy(model(dct(both)).float(), labels)


def trained(images: Images, *, seed: int) -> nn.Module:
    rows = np.random.default_rng([seed, 51]).permutation(len(images))[:ROWS]
    info = dataclasses.replace(images.info, class_names=("as it is", "tampered with"))
    chosen = images.select(np.sort(rows))
    plain = Images(chosen.ids, chosen.pixels, np.zeros_like(chosen.labels), info)
    return train_classifier(plain, TrainSettings(epochs=EPOCHS), seed=seed, strategy=Spectra())


@torch.no_grad()
def tampered_probability(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """(n,) of pixels (n, h, w, c) uint8."""
    parts = [network(dct(as_float(x))).float().softmax(1)[:, 1].cpu() for x in to_device(pixels).split(EVAL_BATCH)]
    return torch.cat(parts).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies, and the five ways to tamper
# ---------------------------------------------------------------------------------------------------------------------


def dct(x: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II of every channel: (n, c, h, w) -> (n, c, h, w).

    In float32 also where the training rounds to bfloat16, which would drown the high frequencies.
    """
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        return cosines(height).to(x) @ x @ cosines(width).to(x).T


@cache
def cosines(n: int) -> Tensor:
    """C (n, n) with DCT-II(x) = C x:  C_ki = sqrt(2 / n) cos(pi (2 i + 1) k / 2 n), row 0 over sqrt(2)."""
    k, i = torch.arange(n)[:, None], torch.arange(n)
    matrix = torch.cos(pi * (2 * i + 1) * k / (2 * n)) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def tampered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) in [0, 1], each after one of the five, drawn at random."""
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


def blocks(draw: Tensor, x: Tensor) -> Tensor:
    """(n, 1, h, w) bool: a square of 2 to 7 pixels, up to 5 from the edges, in a corner; from draws (4, n, 1, 1, 1)."""
    height, width = x.shape[2:]
    scale = min(1.0, min(height, width) / OFFICIAL_SIDE)
    side = (scale * (2 + 5 * draw[0])).round().clamp(min=1)
    margin = (scale * 5 * draw[1]).round()
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    row = torch.where(draw[2] < 0.5, row, height - 1 - row)
    column = torch.where(draw[3] < 0.5, column, width - 1 - column)
    return (row >= margin) & (row < margin + side) & (column >= margin) & (column < margin + side)


def half_planes(draw: Tensor, x: Tensor) -> Tensor:
    """(n, 1, h, w) bool: one side of a random line through the middle half of the picture."""
    height, width = x.shape[2:]
    angle, offset = 2 * pi * draw[0], (draw[1] - 0.5) / 2
    row = torch.linspace(-0.5, 0.5, height, device=x.device)[:, None]
    column = torch.linspace(-0.5, 0.5, width, device=x.device)
    return row * angle.cos() + column * angle.sin() > offset
