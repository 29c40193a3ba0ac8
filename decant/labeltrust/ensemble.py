"""Siamese networks at work together: their class scores averaged, the references embedded once.

Embedding is what costs: 80 us for a picture of 28 x 28 on one CPU core, and 20 us for its pairs with 100 references.
Measured on one (busy) CPU core: 80,000 mappings of a picture to a class per second with one network and ten references
of each of ten classes, 38,000 with two networks, 28,000 with three or with two and 35 references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from decant.data.images import Images
from decant.labeltrust.siamese import Pool, Siamese, embed, feature_scores, pair_chunks
from decant.models.training import to_device
from decant.runtime import device


@dataclass(frozen=True)
class Ensemble:
    members: list[tuple[Siamese, Tensor]]  # network on the device, (R, d) features of the references
    counts: Tensor  # (K,) references of every class

    @classmethod
    def of(cls, networks: Sequence[Siamese], references: Pool) -> Self:
        on_device = [network.to(device()).eval() for network in networks]
        return cls([(network, embed(network, references.x)) for network in on_device], references.counts)

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """(n, K) float32 mean class scores of (n, h, w, c) uint8."""
        x = to_device(pixels)
        each = [feature_scores(network, embed(network, x), z, self.counts) for network, z in self.members]
        return torch.stack(each).mean(0).cpu().numpy()

    @torch.no_grad()
    def likeness(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n, len(rows)) mean pair logit with those references."""
        x, wanted = to_device(pixels), torch.from_numpy(rows).to(device())
        each = [torch.cat(list(pair_chunks(network, embed(network, x), z[wanted]))) for network, z in self.members]
        return torch.stack(each).mean(0).cpu().numpy()


def pool_of(references: Images) -> Pool:
    """The references on the device; column k is the k-th class that occurs."""
    columns = torch.from_numpy(np.unique(references.labels, return_inverse=True)[1]).to(device())
    return Pool.of(to_device(references.pixels), columns, int(columns.max()) + 1)
