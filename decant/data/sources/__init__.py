"""Readers of what users have, as rows that are not decoded yet; `open_source` picks one by the `ingest.source` string.

One file per kind of source: `digits`, `torchvision`, `huggingface` (Parquet), `decant_parquet`, `image_folder`. A
reader lists the rows (id, label, where a person finds it) and yields the images that are asked for, batch by
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

TORCHVISION_SETS = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")
KNOWN = f"digits, torchvision:{'|'.join(TORCHVISION_SETS)}, a Parquet file or a folder of them, or a folder of images"


def open_source(source: str, *, test_fraction: float, rng: np.random.Generator) -> Source:
    """The rows behind `ingest.source`. `test_fraction` and `rng` divide the digits; other sources don't use them.

    Raises: SourceError, one line that says what to do, when the source is unknown, missing, empty or not a dataset.
    """
    check_name(source)
    if source == "digits":
        from decant.data.sources import digits

        return digits.open_digits(test_fraction, rng)
    if source.startswith("torchvision:"):
        from decant.data.sources import torchvision

        return torchvision.open_torchvision(source.removeprefix("torchvision:"))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix != ".parquet":
        raise SourceError(f"{source}: not a Parquet file; name a .parquet file or a folder of images")
    if not (shards := find_shards(path)):
        return image_folder.open_image_folder(path)
    from decant.data.sources import decant_parquet, huggingface

    tables = decant_parquet.find_tables(path)
    return decant_parquet.open_tables(*tables) if tables else huggingface.open_shards(shards)


def check_name(source: str) -> None:
    """Checks that a source has that name, or something exists at that path; reads nothing. Raises SourceError."""
    if source.startswith("torchvision:"):
        name = source.removeprefix("torchvision:")
        if name not in TORCHVISION_SETS:
            known = ", ".join(TORCHVISION_SETS)
            raise SourceError(f"ingest.source={source}: one of {known} expected after the colon")
    elif source != "digits":
        _require_path(source)


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


def _require_path(source: str) -> None:
    try:
        exists = Path(source).expanduser().exists()
    except OSError as error:
        raise SourceError(f"{source}: can't be read ({error.strerror}); mend that or choose another") from error
    if exists:
        return
    if "/" in source or "." in source or "\\" in source:
        raise SourceError(f"{source}: no such file or folder; ingest.source takes {KNOWN}")
    raise SourceError(f"ingest.source={source}: unknown source and no such folder; known: {KNOWN}")
