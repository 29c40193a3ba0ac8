"""D-VAE, a rate-constrained VAE that disentangles perturbations: network, objective, presets.

Yu et al., "Purify Unlearnable Examples via Rate-Constrained Variational Autoencoders", ICML 2024 (arXiv 2405.01460).
A VAE with a limited latent rate can't transmit a perturbation that the label predicts. An auxiliary decoder, which is
given the label, learns to explain what the reconstruction lacks, and so the perturbation ends up in its output p^.

    z ~ q(z|x) = N(mu, sigma^2),  x^ = sigmoid(D_theta_c(z)),  p^ = D_theta_p(u_y + z)
    KLD = KL(q(z|x) || N(0, 1))
    L = MSE(x^, x) + MSE(clamp(x^ + p^, 0, 1), x) + lambda max(KLD, limit) + max(mean p^2, 0.002)      (official code)
    L = mean |x^ - x|^2 + mean |(x - x^) - p^|^2 + lambda max(KLD, limit)                              (Eq. 14)

The paper's symbols, and their names and shapes here:

    x, y        x, y                  images (n, c, H, W) in [0, 1], given labels (n,) of K classes
    E_phi       encoder               x to features (n, f, h, v);  h = H / s, v = W / s, rounded up;  s: stride
    mu, sigma   mu, log_var           moments of q(z|x), (n, L, h, v);  log_var = log sigma^2
    z           z                     sampled from q(z|x), mapped to (n, f, h, v) by one convolution (`post`)
    u_y         u                     learnt class embedding, (n, f, h, v)
    D_theta_c   image_decoder         z to x^, in [0, 1]
    D_theta_p   perturbation_decoder  z + u_y to p^, unbounded
    x^, p^      x_hat, p_hat          reconstruction and perturbation, (n, c, H, W)
    lambda      rate_weight           0.01 for limits above 0.2475 nats per pixel and 0.5 below, as in the official code
    w, f, L     width, ...            w channels in the stem, f = w 2^downs features, L = 4 w latent channels

KLD is summed over latent channels, averaged over rows and positions, and stated **per pixel**: a limit of 0.25 nats
per pixel is the paper's 1.0 per latent position at half resolution, and carries over to other strides.

Presets. `paper` is the official code: transposed convolutions, one decoder after the other, float32, batches of 128,
60 epochs. The others are ours: a pixel-shuffle decoder (same function class, fewer kernels), both decoders in one
grouped convolution, bfloat16 and channels-last on a GPU, and, where training is short, a ten times higher learning rate
for the class embedding, which otherwise hardly moves:

    preset    images            w    latent at  training
    small     up to 32 px       16   /2         400 steps of 64 rows
    standard  up to 48 px       64   /2         30 epochs of 256 rows
    px64      49-95 px          64   /4         40 epochs of 128 rows
    px224     96 px and more    96   /8         20 epochs of 128 rows; patch stem, embedding of rank 16

`auto` goes by image size, and takes `small` below 20,000 rows of at most 32 px. Sides that are no multiple of the
stride are padded by reflection and cropped back.

Changed: pixels are rounded when they are stored, where the official code truncates (which darkens every pixel by half a
grey level, twice); log sigma^2 is clamped to [-10, 10]; z is drawn from a seeded random generator.

Cost and expected results: `decant.purify.two_stage`, docs/methods/dvae.md.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.networks import BasicBlock
from decant.purify.settings import PurifySettings

ENERGY_FLOOR = 0.002  # mean p^2 below which its loss term stays constant: an RMS of 11.4 grey levels
PAPER_STRIDE = 2  # of the paper's latent grid; its limits and lambda are stated per position of that grid
LOG_VAR_LIMIT = 10.0


@dataclass(frozen=True)
class Recipe:
    """A preset: the network's shape and the length of its training."""

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
    """Rank of the class embedding u_y; None: one value per class, channel and position."""
    embedding_lr: float = 1
    """Learning rate of the class embedding, as a multiple of the other parameters'."""
    as_published: bool = False
    """Transposed convolutions, two separate decoders, float32."""

    @property
    def stride(self) -> int:
        """s: image pixels per latent position along one side."""
        return self.patch * 2**self.downs

    def epochs_for(self, n: int) -> int:
        """Passes over n rows."""
        return -(-self.steps * self.batch_size // n) if self.steps else self.epochs


PRESETS = {
    "paper": Recipe(width=64, batch_size=128, epochs=60, as_published=True),
    "small": Recipe(width=16, batch_size=64, epochs=1, steps=400, embedding_lr=10),
    "standard": Recipe(width=64, batch_size=256, epochs=30),
    "px64": Recipe(width=64, batch_size=128, epochs=40, downs=2),
    "px224": Recipe(width=96, batch_size=128, epochs=20, patch=4, rank=16),
}


def recipe(settings: PurifySettings, images: Images, *, epochs: int | None = None) -> Recipe:
    """The preset that the settings name, or the one that fits the images; `epochs` overrides its length."""
    chosen = PRESETS[preset_for(images) if settings.preset == "auto" else settings.preset]
    return replace(chosen, epochs=epochs, steps=None) if epochs else chosen


def preset_for(images: Images) -> str:
    """The name of the preset that `auto` takes."""
    side = max(images.shape[:2])
    if side >= 96:
        return "px224"
    if side > 48:
        return "px64"
    return "small" if side <= 32 and len(images) < 20_000 else "standard"


# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------


def published_decoder(width: int, channels: int) -> nn.Sequential:
    """The official code's decoder: (n, 2w, h, v) to (n, channels, 2h, 2v), unbounded."""
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


def grouped_decoders(chosen: Recipe, channels: int) -> nn.Sequential:
    """D_theta_c and D_theta_p as two groups of channels: (n, 2f, h, v) to (n, 2 channels, h s, v s), unbounded."""
    layers: list[nn.Module] = []
    features = chosen.width * 2**chosen.downs
    for _ in range(chosen.downs):
        layers += [GroupedConv(features, 2 * features), nn.PixelShuffle(2), nn.InstanceNorm2d(features), nn.ReLU()]
        features //= 2
    half = max(chosen.width // 2, 1)
    layers += [GroupedConv(features, half), nn.InstanceNorm2d(2 * half), nn.ReLU()]
    layers += [GroupedConv(half, channels * chosen.patch**2), nn.PixelShuffle(chosen.patch)]
    return nn.Sequential(*layers)


class GroupedConv(nn.Conv2d):
    """A 3 x 3 convolution in two groups of channels.

    One kernel on a GPU. On a CPU a grouped convolution takes twice as long as two plain ones, so there it is two.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(2 * inputs, 2 * outputs, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        assert self.bias is not None
        groups = zip(x.chunk(2, 1), self.weight.chunk(2), self.bias.chunk(2), strict=True)
        return torch.cat([F.conv2d(part, weight, bias, padding=1) for part, weight, bias in groups], 1)


class ClassEmbedding(nn.Module):
    """u_y, a learnt map per class: labels (n,) to (n, f, h, v).

    Full: one value per class, channel and position. Low rank: u_y = sum_r a[y, r, channel] b[r, position], which keeps
    a hundred classes of large images affordable.
    """

    def __init__(self, classes: int, features: int, grid: tuple[int, int], rank: int | None):
        super().__init__()
        self.grid = grid
        self.values = nn.Parameter(torch.randn(classes, features, *grid) if rank is None else torch.empty(0))
        self.factors = nn.Parameter(torch.randn(classes, rank or 0, features) / (rank or 1) ** 0.5)  # a
        self.maps = nn.Parameter(torch.randn(rank or 0, grid[0] * grid[1]))  # b

    def forward(self, y: Int[Tensor, " n"]) -> Float[Tensor, "n f h v"]:
        if len(self.values):
            return self.values[y]
        return torch.einsum("nrf,rp->nfp", self.factors[y], self.maps).unflatten(2, self.grid)


class DVAE(nn.Module):
    """The disentangling VAE: encoder E_phi, sampled latent z, decoders D_theta_c and D_theta_p, class embedding u."""

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
        self.moments = nn.Conv2d(features, 2 * latent, 1)  # mu and log sigma^2 in one convolution
        self.post = nn.Conv2d(latent, features, 1)
        if chosen.as_published:
            self.image_decoder = published_decoder(w, channels)
            self.perturbation_decoder = published_decoder(w, channels)
        else:
            self.decoders = grouped_decoders(chosen, channels)
        self.embedding = ClassEmbedding(classes, features, (-(-height // stride), -(-across // stride)), chosen.rank)

    def forward(
        self, x: Float[Tensor, "n c H W"], y: Int[Tensor, " n"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c H W"], Float[Tensor, "n c H W"], Float[Tensor, ""]]:
        """(x^ in [0, 1], p^ unbounded, KLD in nats per pixel) of images in [0, 1] and their labels.

        generator: on x's device; z is sampled from it, in training and in inference, as in the official code.
        """
        height, across = x.shape[2:]
        mu, log_var = self.moments(self.encoder(padded(x, self.recipe.stride))).float().chunk(2, dim=1)
        log_var = log_var.clamp(-LOG_VAR_LIMIT, LOG_VAR_LIMIT)
        epsilon = torch.randn(mu.shape, generator=generator, device=mu.device)
        z = self.post(mu + torch.exp(0.5 * log_var) * epsilon)
        x_hat, p_hat = self.decode(z, self.embedding(y))
        kld = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum(1).mean() / self.recipe.stride**2
        return x_hat[:, :, :height, :across], p_hat[:, :, :height, :across], kld

    def decode(
        self, z: Float[Tensor, "n f h v"], u: Float[Tensor, "n f h v"]
    ) -> tuple[Float[Tensor, "n c Hs Ws"], Float[Tensor, "n c Hs Ws"]]:
        """x^ = sigmoid(D_theta_c(z)) and p^ = D_theta_p(u_y + z), of the padded size."""
        if self.recipe.as_published:
            image, perturbation = self.image_decoder(z), self.perturbation_decoder(u + z)
        else:
            image, perturbation = self.decoders(torch.cat([z, u + z], 1)).chunk(2, dim=1)
        return torch.sigmoid(image.float()), perturbation.float()


def padded(x: Float[Tensor, "n c H W"], stride: int) -> Float[Tensor, "n c Hs Ws"]:
    """The images, reflected at the right and lower edge up to sides that are multiples of the stride."""
    down, right = -x.shape[2] % stride, -x.shape[3] % stride
    return F.pad(x, (0, right, 0, down), mode="reflect") if down or right else x


def loss(
    x: Float[Tensor, "n c H W"],
    x_hat: Float[Tensor, "n c H W"],
    p_hat: Float[Tensor, "n c H W"],
    kld: Float[Tensor, ""],
    *,
    kld_limit: float,
    with_floor: bool,
    objective: str = "code",
) -> Float[Tensor, ""]:
    """L of the official code, or of Eq. 14 for `objective="eq14"` (both above); kld and kld_limit in nats per pixel.

    with_floor: adds max(mean p^2, 0.002), which the official code does after the first epochs only.
    """
    per_position = PAPER_STRIDE**2
    rate_weight = 0.01 if objective == "eq14" or per_position * kld_limit > 0.99 else 0.5
    rate = rate_weight * per_position * kld.clamp_min(kld_limit)
    if objective == "eq14":
        return F.mse_loss(x_hat, x) + F.mse_loss(p_hat, x - x_hat) + rate
    value = F.mse_loss(x_hat, x) + F.mse_loss((x_hat + p_hat).clamp(0, 1), x) + rate
    return value + (p_hat**2).mean().clamp_min(ENERGY_FLOOR) if with_floor else value
