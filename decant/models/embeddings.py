"""Embeddings that the user computed elsewhere, checked when they are read.

* Parquet: columns `id` (whole numbers) and `embedding` (fixed-size or plain list of numbers, all of one length).
  Rows of other ids, such as test rows, are ignored.
* `.npy`: (rows, d) numbers; row i belongs to id i, as ingest numbers them. Pickled objects are refused.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from decant.errors import TableError


def read_embeddings(path: Path, ids: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
    """Read the embeddings of these ids, and standardise each column; a column that never varies becomes 0.

    Raises: TableError, one line with the file, the column, what was expected and what was found.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; verify.embeddings names a Parquet or .npy file, null uses the pixels")
    values = _from_npy(path, ids) if path.suffix == ".npy" else _from_parquet(path, ids)
    if not np.isfinite(values).all():
        row = int(ids[np.flatnonzero(~np.isfinite(values).all(1))[0]])
        raise TableError(f"{path}: column 'embedding': finite numbers expected, id {row} has others")
    varies = values.max(0) > values.min(0)
    spread = np.where(varies, values.std(0), 1)
    return np.where(varies, (values - values.mean(0)) / spread, 0).astype(np.float32)


def _from_npy(path: Path, ids: np.ndarray) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TableError(f"{path}: not a .npy file of numbers ({error})") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "fiu" or not found.size:
        kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive"
        raise TableError(f"{path}: an array of numbers (rows, d) expected, {kind} found")
    if len(found) <= ids.max():
        raise TableError(f"{path}: a row for each id expected, up to id {ids.max()}; {len(found)} rows found")
    return found[ids].astype(np.float64)


def _from_parquet(path: Path, ids: np.ndarray) -> np.ndarray:
    try:
        schema = pq.read_schema(path)
        _check(path, schema)
        table = pq.read_table(path, columns=["id", "embedding"]).combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    if table["id"].null_count or table["embedding"].null_count or not len(table):
        raise TableError(f"{path}: columns 'id' and 'embedding': rows without gaps expected, none or empty cells found")
    known = table["id"].to_numpy()
    if len(np.unique(known)) < len(known):
        raise TableError(f"{path}: column 'id': each id once expected, {len(known) - len(np.unique(known))} repeated")
    order = np.argsort(known)
    places = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
    missing = ids[known[places] != ids]
    if len(missing):
        raise TableError(f"{path}: column 'id': every row expected, {len(missing)} missing, such as id {missing[0]}")
    lists = table["embedding"].take(pa.array(places))
    lengths = np.array(pc.list_value_length(lists))
    if lengths.min() != lengths.max() or not lengths[0]:
        raise TableError(f"{path}: column 'embedding': one length expected, {lengths.min()} to {lengths.max()} found")
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)  # an empty cell becomes NaN
    return values.astype(np.float64).reshape(len(ids), lengths[0])


def _check(path: Path, schema: pa.Schema) -> None:
    for name, fits, expected in (
        ("id", pa.types.is_integer, "whole numbers"),
        ("embedding", _is_list_of_numbers, "lists of numbers"),
    ):
        if name not in schema.names:
            raise TableError(f"{path}: column {name!r} ({expected}) expected, {', '.join(schema.names)} found")
        if not fits(schema.field(name).type):
            raise TableError(f"{path}: column {name!r}: {expected} expected, {schema.field(name).type} found")


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
