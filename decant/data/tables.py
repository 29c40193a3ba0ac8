"""The tables that travel between stages. Only this module knows their columns.

* **Images** ``id int64 | image fixed_shape_tensor<uint8>(height, width, channel) | label int32``.
  An id is given once, at ingest, and never renumbered.
* **Verdicts** ``id | stage | score | flagged | action | suggested_label | suggested_trust | reason``. Higher scores are
  more suspicious. What a stage suggests and how far it trusts that may be null, and be left out of what is written.
* **Truth** ``id | attack | original_label``: which rows a simulation poisoned. For measuring only.
* **Perturbations** ``id | perturbation fixed_shape_tensor<float16>(height, width, channel)``: what purification
  removed, received less purified, in [-1, 1].
* **Places** ``id | path``: where in the source a person finds each row that ingest took.
* **Rejected** ``split | row | path | reason``: rows of the source that ingest could not use.

How they lie in their files: `decant.data.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float16, Int32, Int64

from decant.data.images import METADATA_KEY, DatasetInfo, Images, pixel_digests
from decant.data.parquet import (
    TableWriter,
    array_column,
    array_values,
    check_columns,
    open_table,
    read_frame,
    required,
    write_frame,
)
from decant.errors import TableError
from decant.streams import stream

ACTIONS = ("keep", "drop", "relabel", "purify")  # purify: the row stays, with other pixels

_ID, _LABEL, _REASON = required("id", pa.int64()), required("label", pa.int32()), required("reason", pa.string())
VERDICTS = pa.schema(
    [
        _ID,
        required("stage", pa.string()),
        required("score", pa.float32()),
        required("flagged", pa.bool_()),
        required("action", pa.string()),
        pa.field("suggested_label", pa.int32()),
        pa.field("suggested_trust", pa.float32()),
        _REASON,
    ]
)
TRUTH = pa.schema([_ID, required("attack", pa.string()), required("original_label", pa.int32())])
PLACES = pa.schema([_ID, required("path", pa.string())])
REJECTED = pa.schema(
    [required("split", pa.string()), required("row", pa.int64()), required("path", pa.string()), _REASON]
)


# Images ---------------------------------------------------------------------------------------------------------------


class ImagesWriter(TableWriter):
    """Writes an Images table part by part."""

    def __init__(self, path: Path, shape: tuple[int, int, int], info: DatasetInfo | None):
        image = required("image", pa.fixed_shape_tensor(pa.uint8(), shape))
        metadata = info.to_metadata() if info else None
        super().__init__(path, pa.schema([_ID, image, _LABEL], metadata=metadata))

    def write_images(self, images: Images) -> None:
        """Appends the rows."""
        self.write(pa.array(images.ids), array_column(images.pixels), pa.array(images.labels))

    def write_info(self, info: DatasetInfo) -> None:
        """Adds the info at the end, where it was not known at the beginning, such as the checksum."""
        self.write_metadata(info.to_metadata())


def write_images(path: Path, images: Images) -> None:
    """Writes an Images table at once."""
    with ImagesWriter(path, images.shape, images.info) as writer:
        writer.write_images(images)


def _images_file(path: Path) -> tuple[pq.ParquetFile, DatasetInfo]:
    file = open_table(path)
    schema = file.schema_arrow
    check_columns(path, schema, pa.schema([_ID, _LABEL]))
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
        yield _row_group(file, group, info, path)
    pa.default_memory_pool().release_unused()  # Arrow keeps some hundred MiB of what it read


def _row_group(file: pq.ParquetFile, group: int, info: DatasetInfo, path: Path) -> Images:
    table = file.read_row_group(group).combine_chunks()
    labels = _label_values(table, info, path)
    pixels = array_values(table.column("image").chunk(0))
    return Images(table.column("id").to_numpy(), pixels, labels, info)


def _label_values(table: pa.Table, info: DatasetInfo, path: Path) -> Int32[np.ndarray, " n"]:
    labels = table.column("label").to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(info.class_names):
        raise TableError(
            f"{path}: column 'label': 0 to {len(info.class_names) - 1} expected, {labels.min()} to {labels.max()} found"
        )
    return labels


def read_images(path: Path) -> Images:
    """The whole table in memory, and no more than a row group beside it.

    Raises: TableError when the file is missing or its columns are not those of an Images table.
    """
    return _gathered(path, np.ones(count_rows(path), bool))


def sample_images(path: Path, limit: int, *, seed: int) -> Images:
    """At most `limit` rows, drawn at random, in the table's order; no more than a row group beside them in memory.

    The same rows of every table of that length: the draw depends on the number of rows and the seed alone.
    """
    n = count_rows(path)
    if n <= limit:
        return read_images(path)
    wanted = np.zeros(n, bool)
    wanted[stream(seed, "sample of rows").choice(n, limit, replace=False)] = True
    return _gathered(path, wanted)


def _gathered(path: Path, wanted: Bool[np.ndarray, " n"]) -> Images:
    """The wanted rows. Filled in place: parts that are joined in the end would be in memory twice."""
    file, info = _images_file(path)
    shape, rows = tuple(file.schema_arrow.field("image").type.shape), int(wanted.sum())
    found = Images(np.empty(rows, np.int64), np.empty((rows, *shape), np.uint8), np.empty(rows, np.int32), info)
    start = filled = 0
    for part in iter_images(path):
        chosen = wanted[start : start + len(part)]
        place = slice(filled, filled + int(chosen.sum()))
        found.ids[place], found.pixels[place], found.labels[place] = (
            part.ids[chosen], part.pixels[chosen], part.labels[chosen],
        )  # fmt: skip
        start, filled = start + len(part), place.stop
    return found


def read_image_row(path: Path, row_id: int) -> Images | None:
    """The one row with that id, or None; reads only the columns and row groups that it must."""
    group = read_image_group(path, row_id)
    return None if group is None else group.select(group.ids == row_id)


def read_image_group(path: Path, row_id: int) -> Images | None:
    """The row group that holds the row with that id, about 32 MiB of pixels; None if there is none."""
    file, info = _images_file(path)
    column = file.schema_arrow.get_field_index("id")
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(column).statistics
        if known is not None and known.has_min_max and not known.min <= row_id <= known.max:
            continue
        if row_id in file.read_row_group(group, columns=["id"]).column("id").to_numpy():
            return _row_group(file, group, info, path)
    return None


def is_images_table(path: Path) -> bool:
    """Whether the Parquet file is an Images table of Decant's."""
    return METADATA_KEY in (open_table(path).metadata.metadata or {})


def read_labels(path: Path) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"], DatasetInfo]:
    """(ids, labels, info) of an Images table, without its pixels."""
    file, info = _images_file(path)
    table = file.read(columns=["id", "label"])
    return table.column("id").to_numpy(), _label_values(table, info, path), info


def read_digests(path: Path) -> dict[int, str]:
    """Id to a name of the row's picture by its pixels: p and a digest of 16 hexadecimal digits.

    The p is there for spreadsheets, which take some digests for numbers and round them.
    """
    return {
        int(row): f"p{digest:016x}"
        for images in iter_images(path)
        for row, digest in zip(images.ids, pixel_digests(images.pixels).tolist(), strict=True)
    }


def read_info(path: Path) -> DatasetInfo:
    """What an Images table is, without any of its rows."""
    return _images_file(path)[1]


def count_rows(path: Path) -> int:
    """Rows of a table, from its metadata."""
    return open_table(path).metadata.num_rows


# Perturbations --------------------------------------------------------------------------------------------------------


class PerturbationsWriter(TableWriter):
    """Writes a Perturbations table part by part."""

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        super().__init__(path, pa.schema([_ID, pa.field("perturbation", pa.fixed_shape_tensor(pa.float16(), shape))]))

    def write_perturbations(self, ids: Int64[np.ndarray, " n"], perturbations: Float[np.ndarray, "n h w c"]) -> None:
        """perturbations: in [-1, 1]; stored as float16."""
        self.write(pa.array(ids), array_column(perturbations.astype(np.float16)))


def iter_perturbations(path: Path) -> Iterator[tuple[Int64[np.ndarray, " n"], Float16[np.ndarray, "n h w c"]]]:
    """(ids, perturbations) of one row group after the other."""
    file = open_table(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).combine_chunks()
        yield table.column("id").to_numpy(), array_values(table.column("perturbation").chunk(0))


# Verdicts, Places, Rejected, Truth ------------------------------------------------------------------------------------


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
    write_frame(path, verdicts, VERDICTS)


def read_verdicts(path: Path) -> pd.DataFrame:
    """Reads a Verdicts table."""
    return read_frame(path, VERDICTS).astype({"suggested_label": "Int32"})


def write_places(path: Path, places: pd.DataFrame) -> None:
    """Writes a Places table."""
    write_frame(path, places, PLACES)


def read_places(path: Path) -> "pd.Series[str]":
    """Where in the source a person finds each row, by its id."""
    return read_frame(path, PLACES).set_index("id")["path"]


def write_rejected(path: Path, rejected: pd.DataFrame) -> None:
    """Writes a Rejected table."""
    write_frame(path, rejected, REJECTED)


def read_rejected(path: Path) -> pd.DataFrame:
    """Reads a Rejected table."""
    return read_frame(path, REJECTED)


def write_truth(path: Path, truth: pd.DataFrame) -> None:
    """Writes a Truth table."""
    write_frame(path, truth, TRUTH)


def read_truth(path: Path) -> pd.DataFrame:
    """Which rows a simulation poisoned. A test holds who may call this: never a method that is being measured."""
    return read_frame(path, TRUTH)


# The only place where a row is dropped or relabelled ------------------------------------------------------------------


def apply_verdicts(images: Images, verdicts: pd.DataFrame) -> Images:
    """The rows that the verdicts keep, in the same order, with the labels that they correct.

    A row without a verdict is kept as it is. Raises TableError when a verdict names an id that the images do not have,
    or asks for a relabel without saying to what.
    """
    unknown = np.setdiff1d(verdicts["id"].to_numpy(), images.ids)
    if len(unknown):
        raise TableError(f"verdicts: column 'id': ids of the images expected, {unknown[0]} found")
    relabel = verdicts[verdicts["action"] == "relabel"].reindex(columns=["id", "suggested_label"])
    if relabel["suggested_label"].isna().any():
        missing = int(relabel.loc[relabel["suggested_label"].isna(), "id"].iloc[0])
        raise TableError(f"verdicts: column 'suggested_label': a label expected to relabel id {missing}, none found")
    corrected = pd.Series(images.labels, index=images.ids)
    corrected.loc[relabel["id"].to_numpy()] = relabel["suggested_label"].to_numpy(dtype=np.int32)
    dropped = verdicts.loc[verdicts["action"] == "drop", "id"].to_numpy()
    return images.with_labels(corrected.to_numpy()).select(~np.isin(images.ids, dropped))
