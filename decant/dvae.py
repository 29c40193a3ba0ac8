"""D-VAE: purify unlearnable examples with a rate-constrained variational autoencoder.

Yu et al., "Purify Unlearnable Examples via Rate-Constrained Variational Autoencoders", ICML 2024 (arXiv 2405.01460).
A VAE whose latent rate is limited can't carry a perturbation that is easy to predict from the label; an auxiliary
decoder, given the label, is made to explain what the reconstruction lacks, and so gets the perturbation for itself:

    z ~ q(z|x),  x^ = sigmoid(D_c(z)),  p^ = D_p(u_y + z)
    L = MSE(x^, x) + MSE(clamp(x^ + p^, 0, 1), x) + lambda max(KLD, kld_limit) + max(mean p^2, 0.002)     (after Eq. 14)

Two stages, three inferences (Algorithm 1):

    1. fit on x0 with a small limit;  x1 = clamp(x0 - p^(x0))
    2. fit on x1 with a larger limit; x2 = clamp(x1 - p^(x1));  x3 = clamp(x^(x2)), the purified image

KLD is in nats per latent position: summed over latent channels, averaged over batch and positions. The energy floor of
p^ starts after a sixth of the training. Both, and lambda, are the official code's, not the paper's text.

Changed: stored pixels are rounded, not truncated (truncation darkens every pixel by half a grey level, twice); the
latent noise of the inferences is seeded; preset `small` has width 16, a lighter decoder (pixel shuffle in the place of
transposed convolutions) and a ten times higher learning rate for the class embedding, which otherwise hardly moves in a
few hundred steps.

Cost: `small` on 2,874 digits of 16 x 16: about 15 s a stage on two CPU cores. `official` on CIFAR-10 wants a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.networks import BasicBlock
from decant.runtime import device
from decant.settings import PurifySettings
from decant.tables import Images
from decant.training import as_float, epochs_of_batches, to_device

LR = 5e-3
GRADIENT_NORM = 5.0
ENERGY_FLOOR = 0.002  # of mean p^2: an RMS of 11.4 grey levels
INFERENCE_BATCH = 512


@dataclass(frozen=True)
class Recipe:
    width: int
    batch_size: int
    epochs: int
    embedding_lr: float
    """Learning rate of the class embedding, as a multiple of the rest's."""
    light: bool
    """Pixel-shuffle decoder."""


SMALL_STEPS = 400  # of the small preset, whatever the number of rows


def recipe(settings: PurifySettings, images: Images) -> Recipe:
    """The preset that the settings name, or the one that fits the data."""
    n, (height, width, channels) = len(images), images.shape
    is_small = n < 20_000 and height * width * channels <= 28 * 28
    if settings.preset == "small" or (settings.preset == "auto" and is_small):
        epochs = settings.epochs or -(-SMALL_STEPS * 64 // n)
        return Recipe(width=16, batch_size=64, epochs=epochs, embedding_lr=10, light=True)
    return Recipe(width=64, batch_size=128, epochs=settings.epochs or 60, embedding_lr=1, light=False)


# ---------------------------------------------------------------------------------------------------------------------
# The network. Shapes: w = width, (h, v) = half the image's height and width, rounded up
# ---------------------------------------------------------------------------------------------------------------------


def decoder(width: int, channels: int, *, light: bool) -> nn.Sequential:
    """(n, 2w, h, v) to (n, channels, 2h, 2v), unbounded."""
    if light:
        up: list[nn.Module] = [nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
    else:
        up = [nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ConvTranspose2d(width, width, 3, 1, 1)]
    narrow = nn.Conv2d if light else nn.ConvTranspose2d
    return nn.Sequential(
        *up,
        nn.InstanceNorm2d(width),
        nn.ReLU(),
        narrow(width, width // 2, 3, padding=1),
        nn.InstanceNorm2d(width // 2),
        nn.ReLU(),
        narrow(width // 2, channels, 3, padding=1),
    )


class DVAE(nn.Module):
    """Encoder E, rate-limited latent z, decoder D_c of the image, decoder D_p and class embedding u of p^."""

    def __init__(self, shape: tuple[int, int, int], classes: int, recipe: Recipe):
        super().__init__()
        height, across, channels = shape
        w = recipe.width
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, w, 3, padding=1, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            BasicBlock(w, w),
            BasicBlock(w, w),
            BasicBlock(w, 2 * w, 2),
        )
        self.moments = nn.Conv2d(2 * w, 8 * w, 1)  # mean and log-variance of z, 4w channels each
        self.post = nn.Conv2d(4 * w, 2 * w, 1)
        self.image_decoder = decoder(w, channels, light=recipe.light)
        self.perturbation_decoder = decoder(w, channels, light=recipe.light)
        self.embedding = nn.Parameter(torch.randn(classes, 2 * w, -(-height // 2), -(-across // 2)))

    def forward(self, x: Tensor, y: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, c, H, W) in [0, 1], y (n,) int64 -> (x^ in [0, 1], p^ unbounded, KLD in nats per position)."""
        height, across = x.shape[2:]
        padded = F.pad(x, (0, across % 2, 0, height % 2), mode="reflect") if (height | across) % 2 else x
        mean, log_variance = self.moments(self.encoder(padded)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-10, 10)
        epsilon = torch.randn(mean.shape, generator=noise, device=mean.device)
        z = self.post(mean + torch.exp(0.5 * log_variance) * epsilon)
        x_hat = torch.sigmoid(self.image_decoder(z).float())
        p_hat = self.perturbation_decoder(self.embedding[y] + z).float()
        kld = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return x_hat[:, :, :height, :across], p_hat[:, :, :height, :across], kld


def loss(x: Tensor, x_hat: Tensor, p_hat: Tensor, kld: Tensor, *, kld_limit: float, with_floor: bool) -> Tensor:
    """The official objective; see the module's docstring."""
    rate_weight = 0.01 if kld_limit > 0.99 else 0.5
    value = F.mse_loss(x_hat, x) + F.mse_loss((x_hat + p_hat).clamp(0, 1), x)
    value = value + rate_weight * kld.clamp_min(kld_limit)
    return value + (p_hat**2).mean().clamp_min(ENERGY_FLOOR) if with_floor else value


# ---------------------------------------------------------------------------------------------------------------------
# Fitting and the three inferences
# ---------------------------------------------------------------------------------------------------------------------


def steps_of(images: Images, settings: PurifySettings) -> int:
    chosen = recipe(settings, images)
    return chosen.epochs * max(1, len(images) // chosen.batch_size)


def fit(images: Images, settings: PurifySettings, *, seed: int, on_step: Callable[[], None] = lambda: None) -> DVAE:
    """A D-VAE trained on the rows and their given labels, in eval mode. No augmentation: u_y is bound to positions."""
    dev, chosen = device(), recipe(settings, images)
    order = torch.Generator().manual_seed(seed)
    noise = torch.Generator(dev).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DVAE(images.shape, images.classes, chosen).to(dev).to(memory_format=torch.channels_last)
    x, y = to_device(images.pixels), torch.from_numpy(images.labels.astype(np.int64)).to(dev)
    batches = epochs_of_batches(len(images), chosen.batch_size, chosen.epochs, order)
    full = [rows for rows in batches if len(rows) == chosen.batch_size] or batches
    rest = [p for name, p in model.named_parameters() if name != "embedding"]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": [model.embedding], "lr": LR * chosen.embedding_lr}]
    optimizer = torch.optim.Adam(groups, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(full))
    for step, rows in enumerate(full):
        batch = as_float(x[rows.to(dev)])
        with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
            x_hat, p_hat, kld = model(batch, y[rows.to(dev)], noise)
        with_floor = step >= len(full) // 6
        value = loss(batch, x_hat, p_hat, kld, kld_limit=settings.kld_limit, with_floor=with_floor)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        on_step()
    return model.eval()


@torch.no_grad()
def infer(model: DVAE, images: Images, *, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x, x^, p^) batch by batch, in the rows' order; z is sampled from a seeded generator, as in the official code."""
    dev = device()
    noise = torch.Generator(dev).manual_seed(seed)
    labels = torch.from_numpy(images.labels.astype(np.int64)).to(dev)
    for x, y in zip(to_device(images.pixels).split(INFERENCE_BATCH), labels.split(INFERENCE_BATCH), strict=True):
        x_hat, p_hat, _ = model(as_float(x), y, noise)
        yield as_float(x), x_hat, p_hat


def first_stage(model: DVAE, images: Images, *, seed: int) -> tuple[Images, np.ndarray]:
    """x1 = clamp(x0 - p^(x0)). Returns (x1 as images, p^ (n, h, w, c) float16)."""
    subtracted, perturbations = [], []
    for x, _, p_hat in infer(model, images, seed=seed):
        subtracted.append(to_uint8(x - p_hat))
        perturbations.append(channels_last(p_hat))
    return images.with_pixels(np.concatenate(subtracted)), np.concatenate(perturbations)


@torch.no_grad()
def second_stage(model: DVAE, images: Images, *, seed: int) -> tuple[Images, np.ndarray]:
    """x2 = clamp(x1 - p^(x1)), kept in float; x3 = x^(x2). Returns (x3 as images, p^ (n, h, w, c) float16)."""
    noise = torch.Generator(device()).manual_seed(seed + 1)
    labels = torch.from_numpy(images.labels.astype(np.int64)).to(device()).split(INFERENCE_BATCH)
    purified, perturbations = [], []
    for (x1, _, p_hat), y in zip(infer(model, images, seed=seed), labels, strict=True):
        x3, _, _ = model((x1 - p_hat).clamp(0, 1), y, noise)
        purified.append(to_uint8(x3))
        perturbations.append(channels_last(p_hat))
    return images.with_pixels(np.concatenate(purified)), np.concatenate(perturbations)


def to_uint8(x: Tensor) -> np.ndarray:
    """(n, c, h, w) in [0, 1] to (n, h, w, c) uint8, rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).to(torch.float16).cpu().numpy()
