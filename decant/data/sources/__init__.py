"""Readers of what users have, as rows that are not decoded yet; `open_source` picks one by the `ingest.source` string.

One file per kind of source: `digits`, `torchvision`, `huggingface` (Parquet), `decant_parquet`, `image_folder`. A
reader lists the rows (id, label, where a person finds it) and hands out the images that are asked for, batch by
batch, so that a subset can be picked before anything is decoded. Readers never decode: that is `decant.data.decode`.

Importing this package is cheap (no torch, torchvision or SciPy): the command line calls `fingerprint` on every run.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from decant.data.sources import image_folder
from decant.data.sources.base import Source
from decant.errors import SourceError

KNOWN = (
    "digits, torchvision:MNIST|FashionMNIST|CIFAR10|CIFAR100, a Parquet file or a folder of them, or a folder of images"
)


def open_source(source: str, *, test_fraction: float, rng: np.random.Generator) -> Source:
    """The rows behind `ingest.source`. `test_fraction` and `rng` serve only sources that are made up (digits).

    Raises: SourceError, one line that says what to do, when the source is unknown, missing, empty or no dataset.
    """
    if source == "digits":
        from decant.data.sources import digits

        return digits.open_digits(test_fraction, rng)
    if source.startswith("torchvision:"):
        from decant.data.sources import torchvision

        return torchvision.open_torchvision(source.removeprefix("torchvision:"))
    path = _existing_path(source)
    if path.is_file() and path.suffix != ".parquet":
        raise SourceError(f"{source}: a file that is no Parquet; name a .parquet file or a folder of images")
    if not (shards := find_shards(path)):
        return image_folder.open_image_folder(path)
    from decant.data.sources import decant_parquet, huggingface

    tables = decant_parquet.find_tables(path)
    return decant_parquet.open_tables(*tables) if tables else huggingface.open_shards(shards)


def check_name(source: str) -> None:
    """Raises SourceError when there is nothing behind that name. What lies there is not looked at."""
    if source != "digits" and not source.startswith("torchvision:"):
        _existing_path(source)


def find_shards(path: Path) -> list[Path]:
    """The Parquet file itself, or those of a folder: at its top, else in `data/`, else in one folder per split."""
    if path.is_file():
        return [path]
    for pattern in ("*.parquet", "data/*.parquet", "train/*.parquet"):
        if found := sorted(path.glob(pattern)):
            return found if not pattern.startswith("train") else sorted(path.glob("*/*.parquet"))
    return []


def fingerprint(source: str) -> str:
    """Digest of the names, sizes and modification times of the files behind `source`: it changes when they do.

    Constant for digits and torchvision, whose contents never change. A missing path has a digest too: reading it is
    what reports the error.
    """
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape"))
    path = Path(source).expanduser()
    if source == "digits" or source.startswith("torchvision:") or not path.exists():
        return digest.hexdigest()
    for file in [str(path)] if path.is_file() else image_folder.walk(path):
        status = os.stat(file) if os.path.exists(file) else os.lstat(file)  # a link may lead nowhere
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _existing_path(source: str) -> Path:
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise SourceError(f"{source}: can't be looked at ({error.strerror}); mend that or choose another") from error
    if exists:
        return path
    if "/" in source or "." in source or "\\" in source:
        raise SourceError(f"{source}: no such file or folder; ingest.source takes {KNOWN}")
    raise SourceError(f"ingest.source={source}: unknown source and no such folder; known: {KNOWN}")
