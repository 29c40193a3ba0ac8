"""Hugging Face image Parquet: column `image` (struct of bytes and path, or plain binary), column `label`.

* The split stands in the file name (`train-00000-of-00003.parquet`) or the folder (`train/0000.parquet`). A
  validation split serves as the test split when there is no test split. Files that name no split at all are training
  rows.
* Integer labels take their names from the `huggingface` schema metadata; without it, the classes are the values that
  occur. Text labels are their own names, sorted. A missing label, or one outside of the classes, is a fault of that
  row.
* An integer column `id` is kept if its values differ over all splits; else rows are numbered as they stand.

Images are read one batch of about 16 MiB after the other, and row groups without a wanted row are not read at all.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from decant.data.sources.base import Batch, Item, Source, Split
from decant.errors import SourceError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BATCH_BYTES = 16 * 2**20
MAX_BATCH_ROWS = 512
_SPLIT = re.compile(r"^(train|test|validation|valid|val)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """One Parquet file and where its rows stand in its split."""

    path: Path
    first_row: int
    rows: int
    image: str
    """Name of the image column."""


def open_shards(paths: list[Path]) -> Source:
    """Opens the files as a source.

    Raises: SourceError when they are no Parquet, lack a column, disagree, or name splits only in part.
    """
    by_split = _by_split(paths)
    train_paths = by_split.pop("train", [])
    if not train_paths:
        raise SourceError(f"{paths[0].parent}: no training split; name its files train-*.parquet")
    test_name = next((name for name in ("test", "validation") if name in by_split), None)
    test_paths = by_split.pop(test_name) if test_name else []
    shards = {"train": _shards(train_paths), "test": _shards(test_paths)}
    class_names, labels = _labels(train_paths, test_paths)
    ids = _ids(train_paths, test_paths, len(labels["train"][0]))
    splits = {name: _split(shards[name], *labels[name], ids[name]) for name in ("train", "test")}
    note = f"{test_name} is the test split" if test_name == "validation" else ""
    note = "the validation split is not used" if by_split else note
    return Source(class_names, splits["train"], splits["test"] if test_paths else None, note)


def _by_split(paths: list[Path]) -> dict[str, list[Path]]:
    if len(paths) == 1:
        return {"train": paths}
    found: dict[str, list[Path]] = {}
    for path in paths:
        match = _SPLIT.match(path.name) or _SPLIT.match(path.parent.name)
        name = match[1].lower() if match else ""
        found.setdefault("validation" if name in ("val", "valid") else name, []).append(path)
    nameless = found.pop("", [])
    if nameless and found:
        raise SourceError(f"{nameless[0]}: its name says no split, others do; call it train-*, test-* or validation-*")
    return found or {"train": nameless}


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Damage that Arrow meets inside the block becomes a SourceError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{path}: can't be read as Parquet ({reason}); fetch it again or take it out") from error


@contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    with naming_damage(path), pq.ParquetFile(path) as file:
        yield file


def _shards(paths: list[Path]) -> list[Shard]:
    shards, first_row = [], 0
    for path in paths:
        with _reading(path) as file:
            image, rows = _image_column(path, file.schema_arrow), file.metadata.num_rows
        shards.append(Shard(path, first_row, rows, image))
        first_row += rows
    return shards


def _column(path: Path, schema: pa.Schema, wanted: tuple[str, ...]) -> pa.Field:
    for name in wanted:
        if name in schema.names:
            return schema.field(name)
    found = ", ".join(schema.names)
    raise SourceError(f"{path}: column {' or '.join(map(repr, wanted))} expected, {found} found; rename the column")


def _image_column(path: Path, schema: pa.Schema) -> str:
    column = _column(path, schema, IMAGE_COLUMNS)
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise SourceError(
            f"{path}: column {column.name!r}: binary, or a struct with 'bytes', expected, {column.type} found"
        )
    return column.name


# ---------------------------------------------------------------------------------------------------------------------
# Labels and ids
# ---------------------------------------------------------------------------------------------------------------------

Labels = tuple[np.ndarray, dict[int, str]]  # (n,) int64 with -1 for a fault; row to fault


def _labels(train: list[Path], test: list[Path]) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """(class names, labels of each split)."""
    raw = {"train": _read_labels(train), "test": _read_labels(test)}
    values = raw["train"]
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        classes = pc.unique(values.filter(pc.not_equal(values, ""))).drop_null().sort()
        names = tuple(classes.to_pylist())
    elif declared := _declared_names(train + test):
        classes, names = pa.array(range(len(declared)), pa.int64()), declared
    else:
        classes = pc.unique(values.filter(pc.greater_equal(values, 0))).drop_null().sort()
        names = tuple(map(str, classes.to_pylist()))
    if test and (kind := raw["test"].type) != values.type:
        raise SourceError(f"{test[0]}: labels of the training rows' type ({values.type}) expected, {kind} found")
    return names, {split: _coded(found, classes) for split, found in raw.items()}


def _read_labels(paths: list[Path]) -> pa.ChunkedArray:
    """The label column of all files, as int64 or string."""
    chunks: list[pa.ChunkedArray] = []
    for path in paths:
        with _reading(path) as file:
            column = _column(path, file.schema_arrow, LABEL_COLUMNS)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not text and not pa.types.is_integer(kind):
                raise SourceError(f"{path}: column {column.name!r}: whole numbers or text expected, {kind} found")
            chunks.append(file.read(columns=[column.name]).column(0).cast(pa.string() if text else pa.int64()))
    kinds = {chunk.type for chunk in chunks}
    if len(kinds) > 1:
        raise SourceError(f"{paths[0].parent}: labels of one type expected, {' and '.join(map(str, kinds))} found")
    pieces = [piece for chunk in chunks for piece in chunk.chunks]
    return pa.chunked_array(pieces, chunks[0].type if chunks else pa.int64())


def _coded(labels: pa.ChunkedArray, classes: pa.Array) -> Labels:
    """Labels as positions in `classes`, which is sorted."""
    codes = pc.fill_null(pc.index_in(labels, value_set=classes, skip_nulls=True), -1).to_numpy().astype(np.int64)
    numbers = pa.types.is_integer(classes.type) and len(classes)
    allowed = f"{classes[0]} to {classes[-1]}" if numbers else "one of the training classes"
    faults = {}
    for row in np.flatnonzero(codes < 0):
        value = labels[int(row)].as_py()
        faults[int(row)] = "label missing" if value in (None, "", -1) else f"label {value!r}: {allowed} expected"
    return codes, faults


def _declared_names(paths: list[Path]) -> tuple[str, ...]:
    """Class names from the schema metadata; empty when the files declare none."""
    declared = {}
    for path in paths:
        with _reading(path) as file:
            label = _column(path, file.schema_arrow, LABEL_COLUMNS).name
            names = _class_label(file.schema_arrow.metadata, label)
        if names:
            declared[names] = path
    if len(declared) > 1:
        raise SourceError(f"{' and '.join(map(str, declared.values()))}: different class names; keep to one dataset")
    return next(iter(declared), ())


def _class_label(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        features: Any = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return tuple(map(str, features["info"]["features"][label]["names"]))
    except (ValueError, KeyError, TypeError):  # foreign metadata: absent, or written by something else
        return ()


def _ids(train: list[Path], test: list[Path], train_rows: int) -> dict[str, np.ndarray | int]:
    """Split to its ids, or to the id of its first row."""
    columns = {"train": _id_column(train), "test": _id_column(test)}
    every = [column for column in columns.values() if column is not None]
    if len(every) == 2 and len(joined := np.concatenate(every)) == len(np.unique(joined)):
        return {"train": every[0], "test": every[1]}
    return {"train": 0, "test": train_rows}


def _id_column(paths: list[Path]) -> np.ndarray | None:
    """(n,) int64, or None when a file has no usable ids."""
    parts = [np.empty(0, np.int64)]
    for path in paths:
        with _reading(path) as file:
            if "id" not in file.schema_arrow.names or not pa.types.is_integer(file.schema_arrow.field("id").type):
                return None
            column = file.read(columns=["id"]).column("id")
        if column.null_count:
            return None
        parts.append(column.cast(pa.int64(), safe=False).to_numpy())
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def _split(shards: list[Shard], labels: np.ndarray, faults: dict[int, str], ids: np.ndarray | int) -> Split:
    def read(rows: np.ndarray) -> Iterator[Batch]:
        for shard in shards:
            inside = rows[(rows >= shard.first_row) & (rows < shard.first_row + shard.rows)]
            yield from _read_shard(shard, inside)

    def path_of(row: int) -> str:
        shard = next(shard for shard in shards if row < shard.first_row + shard.rows)
        return f"{shard.path}:{row - shard.first_row}"

    every = ids if isinstance(ids, np.ndarray) else np.arange(ids, ids + len(labels), dtype=np.int64)
    return Split(every, labels, read, path_of, faults)


def _read_shard(shard: Shard, rows: np.ndarray) -> Iterator[Batch]:
    """The wanted rows of one file; `rows` counts from the split's first row."""
    first = shard.first_row
    with _reading(shard.path) as file:
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            if not np.any((rows >= first) & (rows < first + facts.num_rows)):
                first += facts.num_rows
                continue
            row_bytes = max(1, facts.total_byte_size // max(1, facts.num_rows))
            batch_rows = int(np.clip(BATCH_BYTES // row_bytes, 1, MAX_BATCH_ROWS))
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[shard.image]):
                inside = rows[(rows >= first) & (rows < first + len(batch))]
                if len(inside):
                    yield inside, _image_bytes(batch.column(0).take(pa.array(inside - first)))
                first += len(batch)


def _image_bytes(column: pa.Array) -> list[Item]:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")  # null where the struct is
    return column.to_pylist()
