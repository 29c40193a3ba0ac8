"""A start for LabelTrust's encoder, learnt from all rows without looking at any label.

SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020): two random
views of a row should be more alike than views of different rows. Of n rows, with unit vectors z_i of all 2 n views, and
p(i) the other view of the same row:

    loss = - mean_i log( exp(z_i . z_p(i) / t) / sum over k != i of exp(z_i . z_k / t) )

z comes from a small projection of the features, which is thrown away. Labels can't mislead it, but neither can they
tell it what matters. Views are those of `decant.labeltrust.siamese.augment`; photographs (three channels) are also mirrored and
recoloured, of embeddings some features are dropped.

Cost: a step embeds 2 x BATCH rows; about three training steps of LabelTrust on a CPU. Worth, where measured: less than
one point of false refusals on MNIST (reference page of the prototype).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.labeltrust.siamese import FEATURES, Siamese, as_input, augment, fit
from decant.models.augment import random_flip

BATCH = 128  # rows; each of their views has 2 x 128 - 2 views of other rows to be told from
TEMPERATURE = 0.2  # t
LEARNING_RATE = 3e-3


def pretrained(
    x: Tensor, shape: tuple[int, ...], *, steps: int, seed: int, on_step: Callable[[], None] = lambda: None
) -> Mapping[str, Tensor]:
    """Weights of an encoder for rows of that shape. x: (n, c, h, w) uint8, or (n, e) float32 embeddings."""
    generator = torch.Generator(x.device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Siamese(shape, "plus").to(x.device)
        projection = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 64)).to(x.device)

    def loss() -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=generator, device=x.device)
        views = [projection(encoder.embed(view(as_input(x[rows]), generator))) for _ in range(2)]
        return contrast(*views)

    parameters = [*encoder.encoder.parameters(), *projection.parameters()]
    fit(parameters, loss, rate=LEARNING_RATE, steps=steps, on_step=on_step)
    return encoder.encoder.state_dict()


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """`augment`; photographs (n, 3, h, w) also mirrored, lighter or darker, each channel stronger or weaker."""
    if x.ndim == 4 and x.shape[1] == 3:
        n, dev = len(x), x.device
        x = random_flip(x, generator)
        strength = 0.7 + 0.6 * torch.rand((n, 3, 1, 1), generator=generator, device=dev)
        light = 0.4 * torch.rand((n, 1, 1, 1), generator=generator, device=dev) - 0.2
        mean = x.mean((2, 3), keepdim=True)
        x = (mean + strength * (x - mean) + light).clamp(0, 1)
    return augment(x, generator)


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """The loss above; a, b: (n, d) the two views of each row, in the same order."""
    n = len(a)
    z = F.normalize(torch.cat([a, b]), dim=1)
    likeness = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(likeness, partner)
