"""Contrastive pretraining of LabelTrust's encoder on all rows, without their labels.

SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020): two random
views of a row should be more alike than views of different rows. Of n rows, with unit vectors z_i of all 2 n views, and
p(i) the other view of the same row:

    loss = - mean_i log( exp(z_i . z_p(i) / t) / sum over k != i of exp(z_i . z_k / t) )

z comes from a small projection of the features, which is thrown away. Labels can't mislead the encoder, but neither can
they tell it what matters. Views are those of `decant.labeltrust.augmentation`; photographs (three channels) are also
mirrored and recoloured, and embeddings lose some features.

Cost: a step embeds 2 x BATCH rows; about three training steps of LabelTrust on a CPU. Expected: on MNIST less than one
percentage point fewer false rejections (reference page of the prototype).
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from decant.labeltrust.augmentation import augment, photograph_view
from decant.labeltrust.siamese import FEATURES, Siamese, as_input, fit
from decant.streams import child, torch_stream

BATCH = 128  # rows; each of their views has 2 x 128 - 2 views of other rows to be told from
TEMPERATURE = 0.2  # t
LEARNING_RATE = 3e-3


def pretrained(
    x: Num[Tensor, "n ..."],
    shape: tuple[int, ...],
    *,
    steps: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Mapping[str, Tensor]:
    """Weights of a pretrained encoder for rows of that shape. x: (n, c, h, w) uint8, or (n, e) float32 embeddings."""
    generator = torch_stream(seed, "views", device=x.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(seed, "weights"))
        encoder = Siamese(shape, "plus").to(x.device)
        projection = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 64)).to(x.device)

    def loss() -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=generator, device=x.device)
        views = [projection(encoder.embed(view(as_input(x[rows]), generator))) for _ in range(2)]
        return contrast(*views)

    parameters = [*encoder.encoder.parameters(), *projection.parameters()]
    fit(parameters, loss, rate=LEARNING_RATE, steps=steps, on_step=on_step)
    return encoder.encoder.state_dict()


def view(x: Float[Tensor, "n ..."], generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """A random view of each row; photographs (three channels) also mirrored and recoloured."""
    return augment(photograph_view(x, generator) if x.shape[1:2] == (3,) and x.ndim == 4 else x, generator)


def contrast(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The contrastive loss above; a, b: the two views of each row, in the same order."""
    n = len(a)
    z = F.normalize(torch.cat([a, b]), dim=1)
    likeness = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(likeness, partner)
