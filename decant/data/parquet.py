"""Parquet as Decant's tables use it: written whole or not at all, with one array of fixed shape per row.

zstd, row groups of about 32 MiB; a file is written under a temporary name and renamed, so a file that exists is
complete. The same rows give the same bytes. An array column is viewed as one NumPy array: Arrow holds the values of its
rows one after the other.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from decant.errors import TableError
from decant.files import replacing

ROW_GROUP_BYTES = 32 * 2**20


def required(name: str, kind: pa.DataType) -> pa.Field:
    """A column without nulls."""
    return pa.field(name, kind, nullable=False)


class TableWriter:
    """Writes batches to Parquet one row group after the other, and renames the file into place at the end.

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
        """Appends rows, given as the schema's columns."""
        table = pa.Table.from_arrays(list(columns), schema=self._schema)
        row_bytes = max(1, table.nbytes // max(1, len(table)))
        self._writer.write_table(table, row_group_size=max(1, ROW_GROUP_BYTES // row_bytes))

    def write_metadata(self, metadata: dict[bytes, bytes]) -> None:
        """Adds metadata that is known only when all rows are written, such as a checksum."""
        self._writer.add_key_value_metadata(metadata)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._replacing.__exit__(kind, error, trace)


def array_column(values: Shaped[np.ndarray, " n *shape"]) -> pa.Array:
    """A column with one array per row (`pa.fixed_shape_tensor`); shares the memory of contiguous values."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def array_values(chunk: pa.Array) -> Shaped[np.ndarray, " n *shape"]:
    """The rows of such a column's chunk, as a read-only view of its memory."""
    return chunk.storage.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), *chunk.type.shape)


def open_table(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file. Raises: TableError when it is missing or no Parquet."""
    if not path.is_file():
        raise TableError(f"{path}: no such file; run the stage that writes it first (`decant status` shows which)")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise TableError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error


def check_columns(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    """Checks that the expected columns are there; others may be, too.

    Raises: TableError naming the first column that is missing or of another type.
    """
    for field in expected:
        if field.name not in found.names:
            raise TableError(f"{path}: column {field.name!r}: {field.type} expected, no such column found")
        if found.field(field.name).type != field.type:
            kind = found.field(field.name).type
            raise TableError(f"{path}: column {field.name!r}: {field.type} expected, {kind} found")


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Writes the schema's columns; nullable ones may be missing. Raises: TableError where another one is."""
    missing = [field for field in schema if not field.nullable and field.name not in frame]
    if missing:
        raise TableError(f"{path}: column {missing[0].name!r}: {missing[0].type} expected, none given")
    whole = frame.reindex(columns=schema.names)
    table = pa.Table.from_pandas(whole, schema=schema, preserve_index=False).replace_schema_metadata()
    with TableWriter(path, schema) as writer:
        writer.write(*(column.combine_chunks() for column in table.columns))


def read_frame(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Reads the schema's columns. Raises: TableError when the file is missing or has other columns."""
    file = open_table(path)
    check_columns(path, file.schema_arrow, schema)
    return file.read(columns=schema.names).to_pandas()
