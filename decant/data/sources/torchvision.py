"""Named sets that torchvision downloads: MNIST, FashionMNIST, CIFAR10, CIFAR100.

The files go to DECANT_CACHE (default ~/.cache/decant), once. torchvision checks their MD5 sums before it reads them.
"""

import numpy as np

from decant.data.sources.base import Source, Split, array_split
from decant.errors import SourceError
from decant.runtime import cache_folder


def open_torchvision(name: str) -> Source:
    """The set of that name. Raises: SourceError when the download fails."""
    train, class_names = _read(name, train=True, first_id=0)
    test, _ = _read(name, train=False, first_id=len(train))
    return Source(class_names, train, test)


def _read(name: str, *, train: bool, first_id: int) -> tuple[Split, tuple[str, ...]]:
    import torchvision

    root = cache_folder()
    try:
        data = getattr(torchvision.datasets, name)(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"torchvision:{name}: can't be downloaded to {root} ({reason}); check the network, or set DECANT_CACHE"
        ) from error
    pixels = np.asarray(data.data)  # (n, 28, 28) or (n, 32, 32, 3) uint8
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    return array_split(pixels, np.asarray(data.targets), first_id, f"torchvision:{name}"), tuple(data.classes)
