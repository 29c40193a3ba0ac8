"""Images in memory: ids, pixels and labels of a dataset, and what the dataset is. Files: `decant.data.tables`."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt8, UInt64

from decant.errors import TableError

SCHEMA_VERSION = 1
METADATA_KEY = b"decant"
NO_LABEL = -1
DIGITS = 18  # of a number in text at most; `int` refuses thousands of them


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a dataset is, apart from its rows; kept in the Parquet schema's metadata."""

    class_names: tuple[str, ...]
    source: str
    """What the user named as `ingest.source`."""
    checksum: str
    """SHA-256 over the rows as they were ingested (`rows_checksum`)."""

    def to_metadata(self) -> dict[bytes, bytes]:
        """The metadata of a Parquet schema."""
        fields = {
            "class_names": list(self.class_names),
            "source": self.source,
            "checksum": self.checksum,
            "schema_version": SCHEMA_VERSION,
        }
        return {METADATA_KEY: json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, path: Path) -> Self:
        """Reads the metadata of a Parquet schema. Raises: TableError where it is not that of an Images table."""
        if not metadata or METADATA_KEY not in metadata:
            raise TableError(
                f"{path}: not a Decant Images table: schema metadata 'decant' expected, none found; run ingest on it"
            )
        fields = json.loads(metadata[METADATA_KEY])
        if fields["schema_version"] != SCHEMA_VERSION:
            raise TableError(
                f"{path}: schema version {SCHEMA_VERSION} expected, {fields['schema_version']} found; ingest it again"
            )
        return cls(class_names=tuple(fields["class_names"]), source=fields["source"], checksum=fields["checksum"])


@dataclass(frozen=True)
class Images:
    """Rows of an Images table in memory."""

    ids: Int64[np.ndarray, " n"]
    pixels: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    info: DatasetInfo

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.ids.shape == (n,) and self.ids.dtype == np.int64, (self.ids.shape, self.ids.dtype)
        assert self.pixels.ndim == 4 and len(self.pixels) == n and self.pixels.dtype == np.uint8, self.pixels.shape
        assert self.labels.shape == (n,) and self.labels.dtype == np.int32, (self.labels.shape, self.labels.dtype)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of every image."""
        _, height, width, channel = self.pixels.shape
        return height, width, channel

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.info.class_names)

    def select(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Images":
        """The rows that an index array or a boolean mask picks, in its order."""
        return replace(self, ids=self.ids[rows], pixels=self.pixels[rows], labels=self.labels[rows])

    def with_pixels(self, pixels: UInt8[np.ndarray, "n h w c"]) -> "Images":
        """The same rows with other pixels."""
        return replace(self, pixels=pixels)

    def with_labels(self, labels: Int[np.ndarray, " n"]) -> "Images":
        """The same rows with other labels."""
        return replace(self, labels=labels.astype(np.int32))


def concat_images(parts: list[Images]) -> Images:
    """The rows of all parts, one part after the other; the parts share their `info`."""
    return Images(
        ids=np.concatenate([p.ids for p in parts]),
        pixels=np.concatenate([p.pixels for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        info=parts[0].info,
    )


def class_number(text: str, class_names: tuple[str, ...]) -> int:
    """The class that a text names, by its name or by its number; NO_LABEL where it is neither.

    A name goes first where it looks like another class's number.
    """
    for name in (text, text := text.strip()):
        if name in class_names:
            return class_names.index(name)
    number = int(text) if is_number(text) else NO_LABEL
    return number if number < len(class_names) else NO_LABEL


def is_number(text: str) -> bool:
    """Whether the text is a whole number of 0 or more, of at most DIGITS digits."""
    return text.isdecimal() and len(text) <= DIGITS


def pixel_digests(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt64[np.ndarray, " n"]:
    """A hash of every image's pixels: with a probability of 3e-8 any two of a million different ones share theirs."""
    digests = [hashlib.blake2b(image.data, digest_size=8).digest() for image in np.ascontiguousarray(pixels)]
    return np.frombuffer(b"".join(digests), "<u8")


class RowsChecksum:
    """SHA-256 of a table's rows, computed part by part: the same however the rows are divided into parts."""

    def __init__(self) -> None:
        self._columns = [hashlib.sha256() for _ in range(3)]

    def update(self, images: Images) -> Self:
        """Adds the rows of the next part."""
        for digest, column in zip(self._columns, (images.ids, images.pixels, images.labels), strict=True):
            digest.update(np.ascontiguousarray(column).data)
        return self

    def hexdigest(self) -> str:
        """The checksum of all rows so far."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._columns)).hexdigest()


def rows_checksum(images: Images) -> str:
    """SHA-256 of the rows."""
    return RowsChecksum().update(images).hexdigest()
