"""The tables that travel between stages. Only this module knows their columns.

* **Images** ``id int64 | image fixed_shape_tensor<uint8>(height, width, channel) | label int32``.
  An id is given once, at ingest, and never renumbered.
* **Verdicts** ``id | stage | score | flagged | action | suggested_label | suggested_trust | reason``. Higher scores are
  more suspicious. What a stage suggests and how far it trusts that may be null, and be left out of what is written.
* **Truth** ``id | attack | original_label``: which rows a simulation poisoned. For measuring only.
* **Perturbations** ``id | perturbation fixed_shape_tensor<float16>``: what purification took off, in [-1, 1].
* **Places** ``id | path``: where in the source a person finds each row that ingest took.
* **Rejected** ``split | row | path | reason``: rows of the source that ingest could not use.

Files are Parquet with zstd and row groups of about 32 MiB, written under a temporary name and renamed: a file that
exists is complete. The same rows give the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from decant.data.images import METADATA_KEY, DatasetInfo, Images, pixel_digests
from decant.errors import TableError
from decant.files import replacing

ROW_GROUP_BYTES = 32 * 2**20
ACTIONS = ("keep", "drop", "relabel", "purify")  # purify: the row stays, with other pixels


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ID, _LABEL, _REASON = _required("id", pa.int64()), _required("label", pa.int32()), _required("reason", pa.string())
VERDICTS = pa.schema(
    [
        _ID,
        _required("stage", pa.string()),
        _required("score", pa.float32()),
        _required("flagged", pa.bool_()),
        _required("action", pa.string()),
        pa.field("suggested_label", pa.int32()),
        pa.field("suggested_trust", pa.float32()),
        _REASON,
    ]
)
TRUTH = pa.schema([_ID, _required("attack", pa.string()), _required("original_label", pa.int32())])
PLACES = pa.schema([_ID, _required("path", pa.string())])
REJECTED = pa.schema(
    [_required("split", pa.string()), _required("row", pa.int64()), _required("path", pa.string()), _REASON]
)


# Images: streaming reader and writer ----------------------------------------------------------------------------------


def _images_schema(shape: tuple[int, ...], info: DatasetInfo | None) -> pa.Schema:
    image = _required("image", pa.fixed_shape_tensor(pa.uint8(), shape))
    return pa.schema([_ID, image, _LABEL], metadata=info.to_metadata() if info else None)


class TableWriter:
    """Writes batches to Parquet one row group after the other, and shows the file only when all of it is there.

    Use it as a context manager; an exception inside leaves no file behind, neither whole nor partial.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._replacing = replacing(path)
        self._schema = schema

    def __enter__(self) -> Self:
        temporary = self._replacing.__enter__()
        self._writer = pq.ParquetWriter(temporary, self._schema, compression="zstd")
        return self

    def write(self, *columns: pa.Array) -> None:
        table = pa.Table.from_arrays(list(columns), schema=self._schema)
        row_bytes = max(1, table.nbytes // max(1, len(table)))
        self._writer.write_table(table, row_group_size=max(1, ROW_GROUP_BYTES // row_bytes))

    def write_images(self, images: Images) -> None:
        self.write(pa.array(images.ids), _tensor_column(images.pixels), pa.array(images.labels))

    def write_perturbations(self, ids: np.ndarray, perturbations: np.ndarray) -> None:
        """perturbations: (n, height, width, channel), in [-1, 1]; stored as float16."""
        self.write(pa.array(ids), _tensor_column(perturbations.astype(np.float16)))

    def write_info(self, info: DatasetInfo) -> None:
        """For a writer opened without info: what is known only when all rows are through, such as a checksum."""
        self._writer.add_key_value_metadata(info.to_metadata())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._replacing.__exit__(kind, error, trace)


def _tensor_column(array: np.ndarray) -> pa.Array:
    if not len(array):  # which from_numpy_ndarray refuses
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape[1:])
        return pa.ExtensionArray.from_storage(kind, pa.array([], kind.storage_type))
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def _tensor_values(column: pa.ChunkedArray) -> np.ndarray:
    chunks = [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty((0, *column.type.shape), column.type.value_type.to_pandas_dtype())
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def images_writer(path: Path, shape: tuple[int, int, int], info: DatasetInfo | None) -> TableWriter:
    return TableWriter(path, _images_schema(shape, info))


def write_images(path: Path, images: Images) -> None:
    with images_writer(path, images.shape, images.info) as writer:
        writer.write_images(images)


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise TableError(f"{path}: no such file; run the stage that writes it first (`decant status` shows which)")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise TableError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error


def _check_columns(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    for field in expected:
        if field.name not in found.names:
            raise TableError(f"{path}: column {field.name!r}: {field.type} expected, no such column found")
        if found.field(field.name).type != field.type:
            kind = found.field(field.name).type
            raise TableError(f"{path}: column {field.name!r}: {field.type} expected, {kind} found")


def _images_file(path: Path) -> tuple[pq.ParquetFile, DatasetInfo]:
    file = _open(path)
    schema = file.schema_arrow
    _check_columns(path, schema, pa.schema([_ID, _LABEL]))
    kind = schema.field("image").type if "image" in schema.names else "no such column"
    if not (isinstance(kind, pa.FixedShapeTensorType) and kind.value_type == pa.uint8() and len(kind.shape) == 3):
        raise TableError(
            f"{path}: column 'image': fixed_shape_tensor of uint8 (height, width, channel) expected, {kind} found"
        )
    return file, DatasetInfo.from_metadata(file.metadata.metadata, path)


def iter_images(path: Path) -> Iterator[Images]:
    """The table one row group at a time: about 32 MiB of pixels in memory, whatever the file's size."""
    file, info = _images_file(path)
    for group in range(file.num_row_groups):
        yield _to_images(file.read_row_group(group), info, path)
    pa.default_memory_pool().release_unused()  # Arrow keeps some hundred MiB of what it read


def read_images(path: Path) -> Images:
    """The whole table in memory.

    Raises: TableError when the file is missing or its columns are not those of an Images table.
    """
    file, info = _images_file(path)
    return _to_images(file.read(), info, path)


def read_image_row(path: Path, row_id: int) -> Images | None:
    """The one row with that id, or None; reads only the columns and row groups that it must."""
    group = read_image_group(path, row_id)
    return None if group is None else group.select(group.ids == row_id)


def read_image_group(path: Path, row_id: int) -> Images | None:
    """The row group that holds the row with that id: about 32 MiB of pixels, whatever the file's size. None without."""
    file, info = _images_file(path)
    column = file.schema_arrow.get_field_index("id")
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(column).statistics
        if known is not None and known.has_min_max and not known.min <= row_id <= known.max:
            continue
        if row_id in file.read_row_group(group, columns=["id"]).column("id").to_numpy():
            return _to_images(file.read_row_group(group), info, path)
    return None


def _label_values(table: pa.Table, info: DatasetInfo, path: Path) -> np.ndarray:
    labels = table.column("label").to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(info.class_names):
        raise TableError(
            f"{path}: column 'label': 0 to {len(info.class_names) - 1} expected, {labels.min()} to {labels.max()} found"
        )
    return labels


def _to_images(table: pa.Table, info: DatasetInfo, path: Path) -> Images:
    labels = _label_values(table, info, path)
    return Images(table.column("id").to_numpy(), _tensor_values(table.column("image")), labels, info)


def sample_images(path: Path, limit: int, *, seed: int) -> Images:
    """At most `limit` rows, drawn at random, in the table's order; no more than a row group beside them in memory.

    The same rows of every table of that length: the draw depends on the number of rows and the seed alone.
    """
    n = count_rows(path)
    if n <= limit:
        return read_images(path)
    drawn = np.zeros(n, bool)
    drawn[np.random.default_rng(seed).choice(n, limit, replace=False)] = True
    file, info = _images_file(path)
    shape = tuple(file.schema_arrow.field("image").type.shape)
    # Filled in place: parts joined in the end would be in memory twice.
    sample = Images(np.empty(limit, np.int64), np.empty((limit, *shape), np.uint8), np.empty(limit, np.int32), info)
    start = filled = 0
    for part in iter_images(path):
        chosen = drawn[start : start + len(part)]
        rows = slice(filled, filled + int(chosen.sum()))
        sample.ids[rows], sample.pixels[rows], sample.labels[rows] = (
            part.ids[chosen], part.pixels[chosen], part.labels[chosen],
        )  # fmt: skip
        start, filled = start + len(part), rows.stop
    return sample


def is_images_table(path: Path) -> bool:
    return METADATA_KEY in (_open(path).metadata.metadata or {})


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray, DatasetInfo]:
    """(ids, labels, info) of an Images table, without its pixels."""
    file, info = _images_file(path)
    table = file.read(columns=["id", "label"])
    return table.column("id").to_numpy(), _label_values(table, info, path), info


def read_digests(path: Path) -> dict[int, str]:
    """Id to a name of the row's picture by its pixels, whatever its id: p and a digest of 16 hexadecimal digits (a
    spreadsheet takes some of these for numbers and rounds them)."""
    return {
        int(row): f"p{digest:016x}"
        for images in iter_images(path)
        for row, digest in zip(images.ids, pixel_digests(images.pixels).tolist(), strict=True)
    }


def read_info(path: Path) -> DatasetInfo:
    """What an Images table is, without any of its rows."""
    return _images_file(path)[1]


def count_rows(path: Path) -> int:
    return _open(path).metadata.num_rows


# Verdicts, Places, Rejected, Truth, Perturbations ---------------------------------------------------------------------


def write_verdicts(path: Path, verdicts: pd.DataFrame) -> None:
    """Writes a Verdicts table. Raises TableError on an unknown action, a doubled id or a score that is no number."""
    unknown = sorted(set(verdicts["action"]) - set(ACTIONS))
    if unknown:
        raise TableError(f"{path}: column 'action': one of {', '.join(ACTIONS)} expected, {unknown[0]!r} found")
    if verdicts["id"].duplicated().any():
        doubled = int(verdicts.loc[verdicts["id"].duplicated(), "id"].iloc[0])
        raise TableError(f"{path}: column 'id': one verdict per row expected, id {doubled} found twice")
    if not np.isfinite(verdicts["score"]).all():
        raise TableError(f"{path}: column 'score': finite numbers expected, NaN or infinity found")
    _write_frame(path, verdicts, VERDICTS)


def read_verdicts(path: Path) -> pd.DataFrame:
    return _read_frame(path, VERDICTS)


def write_places(path: Path, places: pd.DataFrame) -> None:
    _write_frame(path, places, PLACES)


def read_places(path: Path) -> "pd.Series[str]":
    """Where in the source a person finds each row, by its id."""
    return _read_frame(path, PLACES).set_index("id")["path"]


def write_rejected(path: Path, rejected: pd.DataFrame) -> None:
    _write_frame(path, rejected, REJECTED)


def read_rejected(path: Path) -> pd.DataFrame:
    return _read_frame(path, REJECTED)


def write_truth(path: Path, truth: pd.DataFrame) -> None:
    _write_frame(path, truth, TRUTH)


def read_truth(path: Path) -> pd.DataFrame:
    """Which rows a simulation poisoned. A test holds who may call this: never a method that is being measured."""
    return _read_frame(path, TRUTH)


def perturbations_writer(path: Path, shape: tuple[int, int, int]) -> TableWriter:
    return TableWriter(path, pa.schema([_ID, pa.field("perturbation", pa.fixed_shape_tensor(pa.float16(), shape))]))


def read_perturbations(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids, perturbations (n, height, width, channel) float16)."""
    table = _open(path).read()
    return table.column("id").to_numpy(), _tensor_values(table.column("perturbation"))


def _write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    missing = [field for field in schema if not field.nullable and field.name not in frame]
    if missing:
        raise TableError(f"{path}: column {missing[0].name!r}: {missing[0].type} expected, none given")
    whole = frame.reindex(columns=schema.names)
    table = pa.Table.from_pandas(whole, schema=schema, preserve_index=False).replace_schema_metadata()
    with TableWriter(path, schema) as writer:
        writer.write(*(column.combine_chunks() for column in table.columns))


def _read_frame(path: Path, schema: pa.Schema) -> pd.DataFrame:
    file = _open(path)
    _check_columns(path, file.schema_arrow, schema)
    frame = file.read(columns=schema.names).to_pandas()
    if "suggested_label" in frame:
        frame["suggested_label"] = frame["suggested_label"].astype("Int32")
    return frame


# The only place where a row is dropped or relabelled ------------------------------------------------------------------


def apply_verdicts(images: Images, verdicts: pd.DataFrame) -> Images:
    """The rows that the verdicts keep, in the same order, with the labels that they correct.

    A row without a verdict is kept as it is. Raises TableError when a verdict names an id that the images do not have,
    or asks for a relabel without saying to what.
    """
    strangers = np.setdiff1d(verdicts["id"].to_numpy(), images.ids)
    if len(strangers):
        raise TableError(f"verdicts: column 'id': ids of the images expected, {strangers[0]} found")
    relabel = verdicts[verdicts["action"] == "relabel"].reindex(columns=["id", "suggested_label"])
    if relabel["suggested_label"].isna().any():
        doubtful = int(relabel.loc[relabel["suggested_label"].isna(), "id"].iloc[0])
        raise TableError(f"verdicts: column 'suggested_label': a label expected to relabel id {doubtful}, none found")
    corrected = pd.Series(images.labels, index=images.ids)
    corrected.loc[relabel["id"].to_numpy()] = relabel["suggested_label"].to_numpy(dtype=np.int32)
    dropped = verdicts.loc[verdicts["action"] == "drop", "id"].to_numpy()
    return images.with_labels(corrected.to_numpy()).select(~np.isin(images.ids, dropped))
