"""A Decant Images Parquet: a file, or a folder with train.parquet and perhaps test.parquet. Ids and classes stay."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from decant.data.sources.base import ARRAY_BATCH_ROWS, Batch, Source, Split
from decant.data.sources.huggingface import naming_damage
from decant.data.tables import is_images_table, iter_images, read_labels
from decant.errors import SourceError


def find_tables(path: Path) -> list[Path]:
    """[train, test] or [train] when `path` holds Decant's own tables, else []."""
    train, test = (path, None) if path.is_file() else (path / "train.parquet", path / "test.parquet")
    if not train.is_file() or not is_images_table(train):
        return []
    return [train, test] if test and test.is_file() else [train]


def open_tables(train: Path, test: Path | None = None) -> Source:
    """Opens the tables as a source.

    Raises: SourceError when the two tables don't belong together; TableError when a label has no class.
    """
    found = [_split(path) for path in (train, test) if path]
    (first, names), (last, last_names) = found[0], found[-1]
    if names != last_names:
        raise SourceError(f"{train} and {test}: the same class names expected, {names} and {last_names} found")
    if test and len(np.intersect1d(first.ids, last.ids)):
        raise SourceError(f"{train} and {test}: ids of their own expected, {test} repeats some of {train}")
    return Source(names, first, last if test else None)


def _split(path: Path) -> tuple[Split, tuple[str, ...]]:
    """(the split, its class names)"""
    with naming_damage(path):
        ids, labels, info = read_labels(path)

    def read(rows: np.ndarray) -> Iterator[Batch]:
        first = 0
        with naming_damage(path):
            for images in iter_images(path):
                inside = rows[(rows >= first) & (rows < first + len(images))]
                yield from _batches(images.pixels, inside, first)
                first += len(images)

    return Split(ids, labels.astype(np.int64), read, lambda row: f"{path}:{row}"), info.class_names


def _batches(pixels: np.ndarray, rows: np.ndarray, first: int) -> Iterator[Batch]:
    for start in range(0, len(rows), ARRAY_BATCH_ROWS):
        part = rows[start : start + ARRAY_BATCH_ROWS]
        yield part, list(pixels[part - first])
