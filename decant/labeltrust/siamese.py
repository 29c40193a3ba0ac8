"""The Siamese network of LabelTrust: one shared encoder f and one symmetric pair head g, trained on a few rows.

    L(a, b) = g(f(a), f(b)),  a logit: do the two pictures show the same class?
    m_c(x)  = mean of L(x, r) over the references r of class c

``paper``: g is linear in |f(a) - f(b)|; pairs drawn half same, half different; binary cross-entropy; no augmentation.
The network itself is a reconstruction, as the paper's code is not public (Koch et al. 2015 is the model of the head).

``plus``: g is a small MLP on [|f(a) - f(b)|, f(a) f(b)]. A step is an episode: some rows of every class, each freshly
augmented, all pairs of them scored at once; the loss is binary cross-entropy over the same-class pairs and the harder
half of the others, plus cross-entropy over m_c (the row itself left out), which is what the score is used for. The
augmentation (affine, blur, noise, erased rectangles) lets no small patch and no fine pattern carry the decision.

Rows may also be embeddings that the user computed elsewhere: (n, e) float32, standardised. Then f is a small MLP, and
the augmentation drops features and adds noise. Nothing else differs.

Everything runs on the device, in float32. Shapes: n rows, k rows of a class, K classes, d features. The shape of a row
is (height, width, channels), or (e,) for embeddings.

Cost: 200 `plus` steps with 80 rows of 16 x 16: about 5 s on one CPU core. Measured on MNIST with 10 rows per class
(reference page of the prototype): rows falsely refused at 0.2 % falsely accepted, 59 % paper -> 7 % plus.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.models.augment import Affine, random_affine
from decant.models.training import as_float, one_cycle, step

FEATURES = 64
EMBED_BATCH = {"cpu": 64, "cuda": 4096}
PAIR_FLOATS = {"cpu": 2**19, "cuda": 2**26}
"""Pair features in memory at once while scoring. 2 MiB stay in a core's cache, which measured twice as fast as 32."""
EPISODE_CLASSES = 20  # of a `plus` episode; more are sampled in turn
PAPER_PAIRS = 64
LEARNING_RATE = {"paper": 1e-3, "plus": 3e-3}
AFFINE = Affine(rotation=0.26, scale=(0.85, 1.15), shear=0.2, shift=0.2, padding="border")
DROPPED, FEATURE_NOISE = 0.2, 0.2
"""Augmentation of embeddings: share of the features set to their mean; noise, in standard deviations of a feature."""


# ---------------------------------------------------------------------------------------------------------------------
# Network
# ---------------------------------------------------------------------------------------------------------------------


def encoder(shape: tuple[int, ...]) -> nn.Sequential:
    """(n, c, height, width) in [0, 1] to (n, d), for any side from 8 pixels on; of embeddings (n, e) to (n, d).

    Group normalisation, as batches are small; halved until at most 4 pixels remain, so that a feature sees a good part
    of the image. Large images are strided at the first layer, where the time would go.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, FEATURES))
    height, width, channels = shape
    stride = 1 if max(height, width) < 12 else 2 if max(height, width) < 64 else 4
    layers: list[nn.Module] = [nn.Conv2d(channels, 32, 5, stride, 2), nn.GroupNorm(8, 32), nn.ReLU()]
    height, width, inputs = -(-height // stride), -(-width // stride), 32
    while max(height, width) > 4:
        halved = nn.MaxPool2d(2, ceil_mode=True)
        layers += [nn.Conv2d(inputs, 64, 3, 1, 1), halved, nn.GroupNorm(8, 64), nn.ReLU()]
        height, width, inputs = -(-height // 2), -(-width // 2), 64
    layers += [nn.Conv2d(inputs, 64, 3, 1, 1), nn.GroupNorm(8, 64), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * height * width, FEATURES))
    return network.to(memory_format=torch.channels_last)  # max pooling is several times faster so on a CPU


class Siamese(nn.Module):
    def __init__(self, shape: tuple[int, ...], mode: Literal["paper", "plus"]):
        super().__init__()
        self.mode = mode
        self.centre = 0.3 if len(shape) == 3 else 0.0  # about the mean of digits and of photographs
        self.encoder = encoder(shape)
        wide = nn.Sequential(nn.Linear(2 * FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))
        self.head = nn.Linear(FEATURES, 1) if mode == "paper" else wide

    def embed(self, x: Tensor) -> Tensor:
        return self.encoder(x - self.centre)

    def pair_logits(self, a: Tensor, b: Tensor) -> Tensor:
        """L for features that broadcast against each other (..., d); L(a, b) = L(b, a) by construction."""
        difference = (a - b).abs()
        features = difference if self.mode == "paper" else torch.cat([difference, a * b], -1)
        return self.head(features).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------------------
# What it learns from
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Rows to learn from, sorted by class."""

    x: Tensor  # (n, c, h, w) uint8, or (n, e) float32
    starts: Tensor  # (K,) first row of every class
    counts: Tensor  # (K,) rows of every class

    @classmethod
    def of(cls, x: Tensor, columns: Tensor, classes: int) -> "Pool":
        """columns: (n,) class of every row, 0 to K - 1."""
        order = torch.argsort(columns, stable=True)
        counts = torch.bincount(columns, minlength=classes)
        return cls(x[order], counts.cumsum(0) - counts, counts)

    def draw(self, classes: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """(len(classes), k) row numbers, with replacement; a class without rows yields some other class's row."""
        share = torch.rand((len(classes), k), generator=generator, device=generator.device)
        rows = self.starts[classes, None] + (share * self.counts[classes, None]).long()
        return rows.clamp(max=len(self.x) - 1)


def as_input(x: Tensor) -> Tensor:
    """What a network takes: pixels as float32 in [0, 1], embeddings as they are."""
    return as_float(x) if x.dtype == torch.uint8 else x


def augment_features(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standardised embeddings (n, e), each with some features dropped and noise on all."""
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= DROPPED
    return kept * x + FEATURE_NOISE * torch.randn(x.shape, generator=generator, device=x.device)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each row rotated, scaled, sheared, shifted; some blurred, some with an erased rectangle; noise on all.

    x: (n, c, h, w) in [0, 1]. No flips: a mirrored digit is another sign.
    """
    if x.ndim == 2:
        return augment_features(x, generator)
    n, _, height, width = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator, device=x.device)

    x = random_affine(x, AFFINE, generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.3, blurred, x)
    reach = uniform(0.1, 0.2, 2, 1, 1)  # half the sides of the erased rectangle, as shares of the image's
    centre = uniform(0, 1, 2, 1, 1)
    down = torch.linspace(0, 1, height, device=x.device)[None, :, None]
    across = torch.linspace(0, 1, width, device=x.device)[None, None, :]
    inside = ((down - centre[:, 0]).abs() < reach[:, 0]) & ((across - centre[:, 1]).abs() < reach[:, 1])
    erased = inside[:, None] & (uniform(0, 1, 1, 1, 1) < 0.5)
    x = torch.where(erased, uniform(0, 1, 1, 1, 1), x)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return x + 0.1 * uniform(0, 1, 1, 1, 1) * noise


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def train(
    pools: Sequence[tuple[Pool, int]],
    shape: tuple[int, ...],
    *,
    mode: Literal["paper", "plus"],
    steps: int,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Siamese:
    """A network fitted to the pools; each comes with how many rows of a class a `plus` episode takes from it.

    start: weights of its encoder to begin with (`decant.labeltrust.pretrain`); None: random ones.
    """
    dev = pools[0][0].x.device
    generator = torch.Generator(dev).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Siamese(shape, mode).to(dev)
    if start is not None:
        model.encoder.load_state_dict(start)

    def loss() -> Tensor:
        return pair_loss(model, pools[0][0], generator) if mode == "paper" else episode(model, pools, generator)

    fit(model.parameters(), loss, rate=LEARNING_RATE[mode], steps=steps, on_step=on_step)
    return model.eval()


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    rate: float,
    steps: int,
    on_step: Callable[[], None],
) -> None:
    """AdamW on a OneCycle schedule; `loss` draws a batch and gives its loss."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
    schedule = one_cycle(optimizer, rate, steps)
    for _ in range(steps):
        value = loss()
        step(optimizer, value)
        schedule.step()
        on_step()


def draw_pairs(pool: Pool, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(row numbers (2, pairs), same (pairs,) bool): the first half two different rows of one class, the rest of two."""

    def integers(limit: Tensor | int) -> Tensor:
        return (torch.rand(pairs, generator=generator, device=generator.device) * limit).long()

    classes = len(pool.counts)
    one = integers(classes)
    same = torch.arange(pairs, device=one.device) < pairs // 2
    other = torch.where(same, one, (one + 1 + integers(classes - 1)) % classes)
    first = integers(pool.counts[one])
    partner = (first + 1 + integers(pool.counts[one] - 1)) % pool.counts[one]
    second = torch.where(same, partner, integers(pool.counts[other]))
    return torch.stack([pool.starts[one] + first, pool.starts[other] + second]), same


def pair_loss(model: Siamese, pool: Pool, generator: torch.Generator) -> Tensor:
    """`paper`: binary cross-entropy of a balanced batch of pairs."""
    rows, same = draw_pairs(pool, PAPER_PAIRS, generator)
    a, b = model.embed(as_input(pool.x[rows.flatten()])).chunk(2)
    return F.binary_cross_entropy_with_logits(model.pair_logits(a, b), same.float())


def episode(model: Siamese, pools: Sequence[tuple[Pool, int]], generator: torch.Generator) -> Tensor:
    """`plus`: the loss of one episode."""
    total = len(pools[0][0].counts)
    classes = torch.randperm(total, generator=generator, device=generator.device)[:EPISODE_CLASSES]
    rows = [pool.x[pool.draw(classes, k, generator)] for pool, k in pools]  # (K, k, c, h, w) each
    x = torch.cat(rows, 1).flatten(0, 1)
    z = model.embed(augment(as_input(x), generator))
    return episode_loss(model.pair_logits(z[:, None], z[None]), len(classes))


def episode_loss(logits: Tensor, classes: int) -> Tensor:
    """logits: (n, n) of all pairs; rows sorted by class, equally many of each."""
    n = len(logits)
    k = n // classes
    column = torch.arange(n, device=logits.device) // k
    same = column[:, None] == column
    itself = torch.eye(n, dtype=torch.bool, device=logits.device)
    positive = F.softplus(-logits[same & ~itself]).mean()
    others = logits[~same].view(n, n - k)
    negative = F.softplus(others.topk((n - k) // 2, dim=1).values).mean()
    sums = logits.masked_fill(itself, 0).view(n, classes, k).sum(2)
    sizes = torch.full_like(sums, k) - F.one_hot(column, classes)
    return positive + negative + F.cross_entropy(sums / sizes, column)


# ---------------------------------------------------------------------------------------------------------------------
# Scoring
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def embed(model: Siamese, x: Tensor) -> Tensor:
    """(n, d) features of rows."""
    return torch.cat([model.embed(as_input(batch)) for batch in x.split(EMBED_BATCH[x.device.type])])


@torch.no_grad()
def class_scores(model: Siamese, x: Tensor, references: Pool) -> Tensor:
    """(n, K) float32: m_c, the mean pair logit with the references of class c; `paper`: the mean pair sigmoid."""
    return feature_scores(model, embed(model, x), embed(model, references.x), references.counts)


@torch.no_grad()
def feature_scores(model: Siamese, z: Tensor, z_references: Tensor, counts: Tensor) -> Tensor:
    """`class_scores` of rows and references that are embedded already. counts: (K,) references of every class."""
    columns = torch.repeat_interleave(counts)
    mean = F.one_hot(columns, len(counts)).float() / counts
    chunks = pair_chunks(model, z, z_references)
    return torch.cat([(logits.sigmoid() if model.mode == "paper" else logits) @ mean for logits in chunks])


def pair_chunks(model: Siamese, z: Tensor, z_references: Tensor) -> Iterator[Tensor]:
    """L of all rows with all references, (b, R) at a time, so that the pair features keep to PAIR_FLOATS."""
    rows = max(1, PAIR_FLOATS[z.device.type] // (len(z_references) * 2 * FEATURES))
    for part in z.split(rows):
        yield model.pair_logits(part[:, None], z_references[None])
