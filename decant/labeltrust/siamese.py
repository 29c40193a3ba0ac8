"""The Siamese network of LabelTrust: one shared encoder f and one symmetric pair head g, trained on a few rows.

    L(a, b) = g(f(a), f(b)),  a logit: do the two pictures show the same class?
    m_c(x)  = mean of L(x, r) over the references r of class c

``paper``: g is linear in |f(a) - f(b)|; pairs drawn half same, half different; binary cross-entropy; no augmentation.
The network itself is a reconstruction, as the paper's code is not public (Koch et al. 2015 is the model of the head).

``plus``: g is a small MLP on [|f(a) - f(b)|, f(a) f(b)]. A step is an episode: some rows of every class, each freshly
augmented (`decant.labeltrust.augmentation`), all pairs of them scored at once; the loss is binary cross-entropy over
the same-class pairs and the harder half of the others, plus cross-entropy over m_c (the row itself left out), which is
what the score is used for.

Rows may also be embeddings that the user computed elsewhere: (n, e) float32, standardised. Then f is a small MLP, and
the augmentation drops features and adds noise. Nothing else differs.

Everything runs on the device, in float32. Shapes: n rows, R references, C classes, d features. The shape of a row is
(height, width, channels), or (e,) for embeddings.

Cost: 200 `plus` steps with 80 rows of 16 x 16: about 5 s on one CPU core. Measured on MNIST with 10 rows per class
(reference page of the prototype): rows falsely refused at 0.2 % falsely accepted, 59 % paper -> 7 % plus.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from decant.labeltrust.augmentation import augment
from decant.models.training import as_float, one_cycle, step
from decant.streams import child, torch_stream

FEATURES = 64
EMBED_BATCH = {"cpu": 64, "cuda": 4096}
PAIR_FLOATS = {"cpu": 2**19, "cuda": 2**26}
"""Pair features in memory at once while scoring. 2 MiB stay in a core's cache, which measured twice as fast as 32."""
EPISODE_CLASSES = 20  # of a `plus` episode; where there are more, each episode draws 20 of them
PAPER_PAIRS = 64  # of a `paper` step
LEARNING_RATE = {"paper": 1e-3, "plus": 3e-3}


# ---------------------------------------------------------------------------------------------------------------------
# Network
# ---------------------------------------------------------------------------------------------------------------------


def encoder(shape: tuple[int, ...]) -> nn.Sequential:
    """The untrained encoder f: images (n, c, h, w) with sides from 8 pixels on, or embeddings (n, e), to (n, d).

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
    """The encoder f and the pair head g of one mode."""

    def __init__(self, shape: tuple[int, ...], mode: Literal["paper", "plus"]):
        super().__init__()
        self.mode = mode
        self.centre = 0.3 if len(shape) == 3 else 0.0  # about the mean of digits and of photographs
        self.encoder = encoder(shape)
        wide = nn.Sequential(nn.Linear(2 * FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))
        self.head = nn.Linear(FEATURES, 1) if mode == "paper" else wide

    def embed(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """f(x) of images in [0, 1] or of embeddings."""
        return self.encoder(x - self.centre)

    def pair_logits(self, a: Float[Tensor, "*pairs d"], b: Float[Tensor, "*pairs d"]) -> Float[Tensor, "*pairs"]:
        """L for features that broadcast against each other; L(a, b) = L(b, a) by construction."""
        difference = (a - b).abs()
        features = difference if self.mode == "paper" else torch.cat([difference, a * b], -1)
        return self.head(features).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Training rows
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Rows to learn from, sorted by class."""

    x: Num[Tensor, "n ..."]
    """(n, c, h, w) uint8 pixels, or (n, e) float32 embeddings."""
    starts: Int[Tensor, " C"]
    """First row of every class."""
    counts: Int[Tensor, " C"]
    """Rows of every class."""

    @classmethod
    def of(cls, x: Num[Tensor, "n ..."], columns: Int[Tensor, " n"], classes: int) -> Self:
        """Sort rows by class. columns: class of every row, 0 to C - 1."""
        order = torch.argsort(columns, stable=True)
        counts = torch.bincount(columns, minlength=classes)
        return cls(x[order], counts.cumsum(0) - counts, counts)

    def draw(self, classes: Int[Tensor, " m"], k: int, generator: torch.Generator) -> Int[Tensor, "m k"]:
        """Draw k row numbers of each class, with replacement; a class without rows yields some other class's row."""
        share = torch.rand((len(classes), k), generator=generator, device=generator.device)
        rows = self.starts[classes, None] + (share * self.counts[classes, None]).long()
        return rows.clamp(max=len(self.x) - 1)


def as_input(x: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Rows as a network takes them: pixels as float32 in [0, 1], embeddings as they are."""
    return as_float(x) if x.dtype == torch.uint8 else x


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
    device = pools[0][0].x.device
    generator = torch_stream(seed, "batches", device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(seed, "weights"))
        model = Siamese(shape, mode).to(device)
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
    """Train by AdamW on a OneCycle schedule; `loss` draws a batch and returns its loss."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
    schedule = one_cycle(optimizer, rate, steps)
    for _ in range(steps):
        step(optimizer, loss())
        schedule.step()
        on_step()


def draw_pairs(
    pool: Pool, pairs: int, generator: torch.Generator
) -> tuple[Int[Tensor, "2 pairs"], Bool[Tensor, " pairs"]]:
    """(row numbers, whether of the same class): first half two different rows of one class, the rest of two classes."""

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


def pair_loss(model: Siamese, pool: Pool, generator: torch.Generator) -> Float[Tensor, ""]:
    """Draw a balanced batch of pairs and compute its binary cross-entropy (`paper`)."""
    rows, same = draw_pairs(pool, PAPER_PAIRS, generator)
    a, b = model.embed(as_input(pool.x[rows.flatten()])).chunk(2)
    return F.binary_cross_entropy_with_logits(model.pair_logits(a, b), same.float())


def episode(model: Siamese, pools: Sequence[tuple[Pool, int]], generator: torch.Generator) -> Float[Tensor, ""]:
    """Draw an episode and compute its loss (`plus`)."""
    total = len(pools[0][0].counts)
    classes = torch.randperm(total, generator=generator, device=generator.device)[:EPISODE_CLASSES]
    rows = [pool.x[pool.draw(classes, k, generator)] for pool, k in pools]  # (classes, k, c, h, w) each
    x = torch.cat(rows, 1).flatten(0, 1)
    z = model.embed(augment(as_input(x), generator))
    return episode_loss(model.pair_logits(z[:, None], z[None]), len(classes))


def episode_loss(logits: Float[Tensor, "n n"], classes: int) -> Float[Tensor, ""]:
    """Cross-entropy of same-class and hard other-class pairs, plus that over class means.

    logits: of all pairs; rows sorted by class, equally many of each.
    """
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
def embed(model: Siamese, x: Num[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Features of rows, in batches."""
    return torch.cat([model.embed(as_input(batch)) for batch in x.split(EMBED_BATCH[x.device.type])])


@torch.no_grad()
def class_scores(model: Siamese, x: Num[Tensor, "n ..."], references: Pool) -> Float[Tensor, "n C"]:
    """m_c, the mean pair logit with the references of class c; `paper`: the mean pair sigmoid."""
    return feature_scores(model, embed(model, x), embed(model, references.x), references.counts)


@torch.no_grad()
def feature_scores(
    model: Siamese, z: Float[Tensor, "n d"], z_references: Float[Tensor, "R d"], counts: Int[Tensor, " C"]
) -> Float[Tensor, "n C"]:
    """`class_scores` of rows and references that are embedded already. counts: references of every class."""
    columns = torch.repeat_interleave(counts)
    mean = F.one_hot(columns, len(counts)).float() / counts
    chunks = pair_chunks(model, z, z_references)
    return torch.cat([(logits.sigmoid() if model.mode == "paper" else logits) @ mean for logits in chunks])


def pair_chunks(
    model: Siamese, z: Float[Tensor, "n d"], z_references: Float[Tensor, "R d"]
) -> Iterator[Float[Tensor, "b R"]]:
    """L of all rows with all references, some rows at a time, so that the pair features keep to PAIR_FLOATS."""
    rows = max(1, PAIR_FLOATS[z.device.type] // (len(z_references) * 2 * FEATURES))
    for part in z.split(rows):
        yield model.pair_logits(part[:, None], z_references[None])
