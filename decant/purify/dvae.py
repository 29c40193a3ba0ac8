"""D-VAE: a rate-constrained variational autoencoder that sets perturbations apart. Network, objective, presets.

Yu et al., "Purify Unlearnable Examples via Rate-Constrained Variational Autoencoders", ICML 2024 (arXiv 2405.01460).
A VAE whose latent rate is limited can't carry a perturbation that is easy to predict from the label; an auxiliary
decoder, given the label, is made to explain what the reconstruction lacks, and so gets the perturbation for itself:

    z ~ q(z|x),  x^ = sigmoid(D_c(z)),  p^ = D_p(u_y + z)
    L = MSE(x^, x) + MSE(clamp(x^ + p^, 0, 1), x) + lambda max(KLD, limit) + max(mean p^2, 0.002)      (official code)
    L = mean |x^ - x|^2 + mean |(x - x^) - p^|^2 + lambda max(KLD, limit)                              (Eq. 14)

`decant.purify.two_stage` fits it and runs the two stages.

KLD is summed over latent channels, averaged over batch and positions, and stated **per pixel**: a limit of 0.25 nats
per pixel is the paper's 1.0 per latent position at half resolution, and carries over to other strides. lambda is 0.01
for limits above 0.2475 and 0.5 below, as in the official code, per latent position at half resolution.

Presets. `paper` is the official code: transposed convolutions, one decoder after the other, float32, batches of 128,
60 epochs. The others are ours, with a pixel-shuffle decoder (same function class, fewer kernels), x^ and p^ decoded by
one grouped decoder, bfloat16 and channels-last on a GPU, and, where training is short, a ten times higher learning rate
for the class embedding, which otherwise hardly moves:

    preset    images            width  latent at  training
    small     up to 32 px       16     /2         400 steps of 64 rows
    standard  up to 48 px       64     /2         30 epochs of 256 rows
    px64      49-95 px          64     /4         40 epochs of 128 rows
    px224     96 px and more    96     /8         20 epochs of 128 rows; patch stem, embedding of rank 16

`auto` goes by image size, and takes `small` below 20,000 rows of at most 32 px. Sides that are no multiple of the
stride are padded by reflection and cropped back.

Changed: pixels are rounded, not truncated, when they are stored (truncation darkens every pixel by half a grey level,
twice); log-variances are clamped to [-10, 10]; the latent noise is seeded.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.networks import BasicBlock
from decant.purify.settings import PurifySettings

ENERGY_FLOOR = 0.002  # of mean p^2: an RMS of 11.4 grey levels
PAPER_STRIDE = 2  # the paper's latent grid, in whose positions its limits and lambda are stated
LOG_VARIANCE = 10.0


@dataclass(frozen=True)
class Recipe:
    """A preset: the network's shape and how long it trains."""

    width: int
    batch_size: int
    epochs: int
    steps: int | None = None
    """Optimiser steps instead of epochs, whatever the number of rows."""
    patch: int = 1
    """Side of the patches that the stem and the decoders fold into channels."""
    downs: int = 1
    """Blocks of stride 2 after the stem."""
    rank: int | None = None
    """Of the class embedding u_y; None: one value per class, channel and position."""
    embedding_lr: float = 1
    """Learning rate of the class embedding, as a multiple of the rest's."""
    as_published: bool = False
    """Transposed convolutions, two separate decoders, float32."""

    @property
    def stride(self) -> int:
        """Image pixels per latent position along one side."""
        return self.patch * 2**self.downs

    def epochs_for(self, n: int) -> int:
        return -(-self.steps * self.batch_size // n) if self.steps else self.epochs


PRESETS = {
    "paper": Recipe(width=64, batch_size=128, epochs=60, as_published=True),
    "small": Recipe(width=16, batch_size=64, epochs=1, steps=400, embedding_lr=10),
    "standard": Recipe(width=64, batch_size=256, epochs=30),
    "px64": Recipe(width=64, batch_size=128, epochs=40, downs=2),
    "px224": Recipe(width=96, batch_size=128, epochs=20, patch=4, rank=16),
}


def recipe(settings: PurifySettings, images: Images, *, epochs: int | None = None) -> Recipe:
    """The preset that the settings name, or the one that fits the data; `epochs` overrides its length."""
    chosen = PRESETS[preset_for(images) if settings.preset == "auto" else settings.preset]
    return replace(chosen, epochs=epochs, steps=None) if epochs else chosen


def preset_for(images: Images) -> str:
    side = max(images.shape[:2])
    if side >= 96:
        return "px224"
    if side > 48:
        return "px64"
    return "small" if side <= 32 and len(images) < 20_000 else "standard"


# ---------------------------------------------------------------------------------------------------------------------
# The network. Shapes: w = width, f = w * 2^downs feature channels, (h, v) = the image's sides / stride, rounded up
# ---------------------------------------------------------------------------------------------------------------------


def published_decoder(width: int, channels: int) -> nn.Sequential:
    """(n, 2w, h, v) to (n, channels, 2h, 2v), unbounded, as in the official code."""
    return nn.Sequential(
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ConvTranspose2d(width, width, 3, 1, 1),
        nn.InstanceNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width // 2, 3, padding=1),
        nn.InstanceNorm2d(width // 2),
        nn.ReLU(),
        nn.ConvTranspose2d(width // 2, channels, 3, padding=1),
    )


def twin_decoder(chosen: Recipe, channels: int) -> nn.Sequential:
    """(n, 2f, h, v) to (n, 2 channels, h stride, v stride): two decoders of one shape, as two groups of channels."""
    layers: list[nn.Module] = []
    features = chosen.width * 2**chosen.downs
    for _ in range(chosen.downs):
        layers += [TwinConv(features, 2 * features), nn.PixelShuffle(2), nn.InstanceNorm2d(features), nn.ReLU()]
        features //= 2
    half = max(chosen.width // 2, 1)
    layers += [TwinConv(features, half), nn.InstanceNorm2d(2 * half), nn.ReLU()]
    layers += [TwinConv(half, channels * chosen.patch**2), nn.PixelShuffle(chosen.patch)]
    return nn.Sequential(*layers)


class TwinConv(nn.Conv2d):
    """Two convolutions of one shape, on the halves of the channels: one kernel on a GPU; on a CPU, where a grouped
    convolution takes twice as long as two plain ones, these."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(2 * inputs, 2 * outputs, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        assert self.bias is not None
        halves = zip(x.chunk(2, 1), self.weight.chunk(2), self.bias.chunk(2), strict=True)
        return torch.cat([F.conv2d(part, weight, bias, padding=1) for part, weight, bias in halves], 1)


class Embedding(nn.Module):
    """u_y, a learnt map per class: (n,) labels to (n, f, h, v).

    Full: one value per class, channel and position. Low rank: u_y = sum_r a[y, r, channel] b[r, position], which keeps
    a hundred classes of large images affordable.
    """

    def __init__(self, classes: int, features: int, grid: tuple[int, int], rank: int | None):
        super().__init__()
        self.grid = grid
        self.values = nn.Parameter(torch.randn(classes, features, *grid) if rank is None else torch.empty(0))
        self.factors = nn.Parameter(torch.randn(classes, rank or 0, features) / (rank or 1) ** 0.5)
        self.maps = nn.Parameter(torch.randn(rank or 0, grid[0] * grid[1]))

    def forward(self, y: Tensor) -> Tensor:
        if len(self.values):
            return self.values[y]
        return torch.einsum("nrf,rp->nfp", self.factors[y], self.maps).unflatten(2, self.grid)


class DVAE(nn.Module):
    """Encoder E, rate-limited latent z, decoder D_c of the image, decoder D_p and class embedding u of p^."""

    def __init__(self, shape: tuple[int, int, int], classes: int, chosen: Recipe):
        super().__init__()
        height, across, channels = shape
        w, stride = chosen.width, chosen.stride
        features, latent = w * 2**chosen.downs, 4 * w
        self.recipe = chosen
        blocks = [BasicBlock(w * 2**i, w * 2 ** (i + 1), 2) for i in range(chosen.downs)]
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(chosen.patch),
            nn.Conv2d(channels * chosen.patch**2, w, 3, padding=1, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            BasicBlock(w, w),
            BasicBlock(w, w),
            *blocks,
        )
        self.moments = nn.Conv2d(features, 2 * latent, 1)  # mean and log-variance of z in one convolution
        self.post = nn.Conv2d(latent, features, 1)
        if chosen.as_published:
            self.image_decoder = published_decoder(w, channels)
            self.perturbation_decoder = published_decoder(w, channels)
        else:
            self.decoders = twin_decoder(chosen, channels)
        self.embedding = Embedding(classes, features, (-(-height // stride), -(-across // stride)), chosen.rank)

    def forward(self, x: Tensor, y: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, c, H, W) in [0, 1], y (n,) int64 -> (x^ in [0, 1], p^ unbounded, KLD in nats per pixel)."""
        height, across = x.shape[2:]
        mean, log_variance = self.moments(self.encoder(padded(x, self.recipe.stride))).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
        epsilon = torch.randn(mean.shape, generator=noise, device=mean.device)
        z = self.post(mean + torch.exp(0.5 * log_variance) * epsilon)
        x_hat, p_hat = self.decode(z, z + self.embedding(y))
        kld = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean() / self.recipe.stride**2
        return x_hat[:, :, :height, :across], p_hat[:, :, :height, :across], kld

    def decode(self, z: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        """x^ from z, p^ from z shifted by u_y."""
        if self.recipe.as_published:
            image, perturbation = self.image_decoder(z), self.perturbation_decoder(shifted)
        else:
            image, perturbation = self.decoders(torch.cat([z, shifted], 1)).chunk(2, dim=1)
        return torch.sigmoid(image.float()), perturbation.float()


def padded(x: Tensor, stride: int) -> Tensor:
    """Reflected at the right and lower edge up to a multiple of the stride."""
    down, right = -x.shape[2] % stride, -x.shape[3] % stride
    return F.pad(x, (0, right, 0, down), mode="reflect") if down or right else x


def loss(
    x: Tensor, x_hat: Tensor, p_hat: Tensor, kld: Tensor, *, kld_limit: float, with_floor: bool, objective: str = "code"
) -> Tensor:
    """The objective (see the module's docstring); kld and kld_limit in nats per pixel."""
    in_paper_positions = PAPER_STRIDE**2
    rate_weight = 0.01 if objective == "eq14" or in_paper_positions * kld_limit > 0.99 else 0.5
    rate = rate_weight * in_paper_positions * kld.clamp_min(kld_limit)
    if objective == "eq14":
        return F.mse_loss(x_hat, x) + F.mse_loss(p_hat, x - x_hat) + rate
    value = F.mse_loss(x_hat, x) + F.mse_loss((x_hat + p_hat).clamp(0, 1), x) + rate
    return value + (p_hat**2).mean().clamp_min(ENERGY_FLOOR) if with_floor else value
