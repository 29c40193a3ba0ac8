"""Named random streams: every random draw of a run follows from its seed and from what it is drawn for.

Two fits that share a seed must not share their draws. With ``seed + 1`` for the second fit, it would share those of the
first fit of the next seed. A name sets them apart, the way `numpy.random.SeedSequence.spawn` does by counting:

    stream(seed, "verify", "references")      child(seed, "fold", 3)

Streams of different names or seeds are independent; the same name gives the same draws on every machine of a kind.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """A NumPy generator of its own for what `name` says."""
    return np.random.default_rng(_sequence(seed, name))


def torch_stream(seed: int, *name: str | int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A PyTorch generator of its own for what `name` says."""
    import torch

    return torch.Generator(device).manual_seed(child(seed, *name))


def child(seed: int, *name: str | int) -> int:
    """A seed of its own for what `name` says: 0 to 2^32 - 1, which scikit-learn accepts, too."""
    return int(_sequence(seed, name).generate_state(1, np.uint32)[0])


def _sequence(seed: int, name: tuple[str | int, ...]) -> np.random.SeedSequence:
    key = tuple(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in name)
    return np.random.SeedSequence(seed, spawn_key=key)
