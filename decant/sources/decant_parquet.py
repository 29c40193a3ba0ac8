"""A Decant Images Parquet: one file, or a folder with train.parquet and perhaps test.parquet. Ids and class names stay."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from decant.errors import SourceError
from decant.sources.base import ARRAY_BATCH_ROWS, Batch, Source, Split
from decant.tables import is_images_table, iter_images, read_labels


def find_tables(path: Path) -> list[Path]:
    """[train, test] or [train] when `path` holds Decant's own tables, else []."""
    train, test = (path, None) if path.is_file() else (path / "train.parquet", path / "test.parquet")
    if not train.is_file() or not is_images_table(train):
        return []
    return [train, test] if test and test.is_file() else [train]


def open_tables(train: Path, test: Path | None = None) -> Source:
    """Raises: SourceError when the two tables don't belong together; TableError when one is damaged."""
    splits = [_split(path) for path in (train, test) if path]
    names = [read_labels(path)[2].class_names for path in (train, test) if path]
    if names[0] != names[-1]:
        raise SourceError(f"{train} and {test}: the same class names expected, {names[0]} and {names[-1]} found")
    if len(splits) == 2 and len(np.intersect1d(splits[0].ids, splits[1].ids)):
        raise SourceError(f"{train} and {test}: ids of their own expected, {test} repeats some of {train}")
    return Source(names[0], splits[0], splits[1] if test else None)


def _split(path: Path) -> Split:
    ids, labels, info = read_labels(path)
    known = (labels >= 0) & (labels < len(info.class_names))
    allowed = f"0 to {len(info.class_names) - 1} expected"
    faults = {int(row): f"label {labels[row]}: {allowed}" for row in np.flatnonzero(~known)}

    def read(rows: np.ndarray) -> Iterator[Batch]:
        first = 0
        for images in iter_images(path):
            inside = rows[(rows >= first) & (rows < first + len(images))]
            for start in range(0, len(inside), ARRAY_BATCH_ROWS):
                part = inside[start : start + ARRAY_BATCH_ROWS]
                yield part, list(images.pixels[part - first])
            first += len(images)

    return Split(ids, np.where(known, labels, -1).astype(np.int64), read, lambda row: f"{path}:{row}", faults)
