"""An ensemble of Siamese networks: their class scores are averaged, and the references are embedded only once.

Embedding dominates the cost: 80 us for a picture of 28 x 28 on one CPU core, and 20 us for its pairs with 100
references. Measured on one (busy) CPU core: 80,000 SL-mappings (a picture against a class) per second with one network
and ten references of each of ten classes, 38,000 with two networks, 28,000 with three or with two and 35 references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from decant.data.images import Images
from decant.labeltrust.siamese import Pool, Siamese, embed, feature_scores, pair_chunks
from decant.models.training import to_device
from decant.runtime import device


@dataclass(frozen=True)
class Ensemble:
    """Networks with the features that each gives the references."""

    members: list[tuple[Siamese, Float[Tensor, "references d"]]]
    """Each network on the device, with its features of the references."""
    counts: Int[Tensor, " judged"]
    """References of every class."""

    @classmethod
    def of(cls, networks: Sequence[Siamese], references: Pool) -> Self:
        """Move the networks to the device and embed the references."""
        on_device = [network.to(device()).eval() for network in networks]
        return cls([(network, embed(network, references.x)) for network in on_device], references.counts)

    def scores(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n judged"]:
        """float32 class scores m_c, the mean over the networks."""
        x = to_device(pixels)
        each = [feature_scores(network, embed(network, x), z, self.counts) for network, z in self.members]
        return torch.stack(each).mean(0).cpu().numpy()

    @torch.no_grad()
    def pair_logits(
        self, pixels: UInt8[np.ndarray, "n h w c"], rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "n m"]:
        """L(x, r) with the references in those rows, the mean over the networks."""
        x, wanted = to_device(pixels), torch.from_numpy(rows).to(device())
        each = [torch.cat(list(pair_chunks(network, embed(network, x), z[wanted]))) for network, z in self.members]
        return torch.stack(each).mean(0).cpu().numpy()


def pool_of(references: Images) -> Pool:
    """The references on the device; column k is the k-th class that occurs."""
    columns = torch.from_numpy(np.unique(references.labels, return_inverse=True)[1]).to(device())
    return Pool.of(to_device(references.pixels), columns, int(columns.max()) + 1)
