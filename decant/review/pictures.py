"""The rows' pictures as PNG, read from the tables row group by row group, never the whole dataset.

A row group (32 MiB of pixels) that is read for one row is kept for all rows of it that the page can show: with a
queue of a few hundred rows, each group is decoded once, however many rows the dataset has.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from decant.data.tables import read_image_group
from decant.errors import StageError
from decant.paths import PURIFIED, RECEIVED
from decant.summaries import Purify2Summary

As = Literal["verified", "received"]
TABLES: dict[As, Path] = {
    "verified": PURIFIED,  # what `verify` sees
    "received": RECEIVED,
}
KEPT_BYTES = 256 * 2**20


class Pictures:
    """`wanted` tells which rows the page can ask for."""

    def __init__(self, wanted: Callable[[], Collection[int]], tables: dict[As, Path] | None = None):
        self._wanted, self._tables = wanted, tables or TABLES
        self._kept: OrderedDict[tuple[As, float, int], np.ndarray] = OrderedDict()  # the float: when it was written
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def purified(self) -> bool:
        """Whether the label check sees other pixels than were received, in any row; True where nobody wrote it down."""
        try:
            return Purify2Summary.read(self._tables["verified"].parent).purified > 0
        except StageError:
            return True

    def png(self, row: int, seen_as: As) -> bytes | None:
        """None for a row that the page has no business with, or that the table doesn't have.

        Raises: TableError when the table is missing.
        """
        wanted = set(self._wanted())
        if row not in wanted:
            return None
        path = self._tables[seen_as]
        written = path.stat().st_mtime if path.is_file() else 0.0
        key = (seen_as, written, row)
        with self._lock:
            if key not in self._kept:
                self._read(path, key, wanted)
            pixels = self._kept.get(key)
        return None if pixels is None else png(pixels)

    def _read(self, path: Path, key: tuple[As, float, int], wanted: set[int]) -> None:
        seen_as, written, row = key
        group = read_image_group(path, row)
        if group is None:
            return
        for row_id, pixels in zip(group.ids.tolist(), group.pixels, strict=True):
            if row_id in wanted and row_id != row:
                self._keep((seen_as, written, row_id), pixels)
        self._keep(key, group.pixels[int(np.flatnonzero(group.ids == row)[0])])  # last: it stays, whatever goes

    def _keep(self, key: tuple[As, float, int], pixels: np.ndarray) -> None:
        if key in self._kept:
            return
        self._kept[key] = pixels.copy()  # of the group, or all of it would stay in memory
        self._bytes += pixels.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def png(pixels: np.ndarray) -> bytes:
    """(h, w, c) uint8, as large as it is: the browser enlarges it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
