"""The rows' pictures as PNG, read from the tables row group by row group, never the whole dataset.

A row group (32 MiB of pixels) that is read for one row is kept for all rows of it that the page can show: with a
queue of a few hundred rows, each group is decoded once, however many rows the dataset has.
"""

import io
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from cachetools import LRUCache
from PIL import Image

from decant.data.tables import read_image_group
from decant.errors import StageError
from decant.paths import PURIFIED, RECEIVED
from decant.summaries import Purify2Summary

SeenAs = Literal["verified", "received"]
TABLES: dict[SeenAs, Path] = {
    "verified": PURIFIED,  # what `verify` sees
    "received": RECEIVED,
}
KEPT_BYTES = 256 * 2**20
PictureKey = tuple[SeenAs, float, int]
"""(as what the row is seen, when its table was written, the row's id)"""


class ReviewPictures:
    """The pictures of the rows that the page can ask for, which `wanted` tells; the least used are forgotten."""

    def __init__(self, wanted: Callable[[], Collection[int]], tables: dict[SeenAs, Path] | None = None):
        self._wanted, self._tables = wanted, tables or TABLES
        self._kept: LRUCache[PictureKey, np.ndarray] = LRUCache(KEPT_BYTES, getsizeof=lambda pixels: pixels.nbytes)
        self._lock = threading.Lock()

    @property
    def purified(self) -> bool:
        """Whether the label check sees other pixels than were received, in any row; True where nobody wrote it down."""
        try:
            return Purify2Summary.read(self._tables["verified"].parent).purified > 0
        except StageError:
            return True

    def png(self, row: int, seen_as: SeenAs) -> bytes | None:
        """The row's picture as PNG; None for a row that the page can't ask for, or that the table doesn't have.

        Raises: TableError when the table is missing.
        """
        wanted = set(self._wanted())
        if row not in wanted:
            return None
        path = self._tables[seen_as]
        written = path.stat().st_mtime if path.is_file() else 0.0
        with self._lock:
            pixels = self._kept.get((seen_as, written, row))
            if pixels is None:
                pixels = self._read(path, (seen_as, written, row), wanted)
        return None if pixels is None else png(pixels)

    def _read(self, path: Path, key: PictureKey, wanted: set[int]) -> np.ndarray | None:
        """The row's pixels (h, w, c); keeps those of all wanted rows of its group, this one's as the newest."""
        seen_as, written, row = key
        group = read_image_group(path, row)
        if group is None:
            return None
        found = {row_id: at for at, row_id in enumerate(group.ids.tolist()) if row_id in wanted}
        for row_id in sorted(found, key=lambda row_id: row_id == row):
            with suppress(ValueError):  # a picture larger than all that may be kept
                # A copy of the group's pixels, or all of them would stay in memory.
                self._kept[seen_as, written, row_id] = group.pixels[found[row_id]].copy()
        return group.pixels[found[row]]


def png(pixels: np.ndarray) -> bytes:
    """Encodes (h, w, c) uint8 as PNG, as large as it is: the browser enlarges it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
