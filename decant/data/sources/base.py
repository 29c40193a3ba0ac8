"""What every reader returns: a `Source` of one or two `Split`s, whose rows are listed but not decoded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, Int64, UInt8

Item = bytes | str | np.ndarray | None
"""An image not yet decoded: a file's contents, a file's path, pixels that need no decoder, or nothing."""
Batch = tuple[np.ndarray, list[Item]]
"""(row numbers, their items); small enough to be sent to another process."""

ARRAY_BATCH_ROWS = 2048


@dataclass(frozen=True)
class Split:
    """The rows of one split in the source's order. Row numbers count from 0."""

    ids: Int64[np.ndarray, " n"]
    """Different over all splits of a source."""
    labels: Int64[np.ndarray, " n"]
    """Index into class_names; -1 where `faults` says what is wrong."""
    read: Callable[[np.ndarray], Iterator[Batch]]
    """Ascending row numbers to their items, in that order, in batches that fit in memory."""
    path_of: Callable[[int], str]
    """Row number to where a person finds it."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Row number to what is wrong with its label."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Source:
    """A dataset as its owner has it: class names and one or two splits."""

    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    """None: the source has no test split, and one is to be set aside."""
    note: str = ""
    """What the user should know about how the source was read."""


def array_split(pixels: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], first_id: int, name: str) -> Split:
    """A split with its pixels in memory; ids count on from `first_id`."""

    def read(rows: np.ndarray) -> Iterator[Batch]:
        for start in range(0, len(rows), ARRAY_BATCH_ROWS):
            part = rows[start : start + ARRAY_BATCH_ROWS]
            yield part, list(pixels[part])

    ids = np.arange(first_id, first_id + len(pixels), dtype=np.int64)
    return Split(ids, np.asarray(labels, np.int64), read, lambda row: f"{name}:{first_id + row}")
