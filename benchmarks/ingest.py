"""Rows per second from image files to one uint8 array, beside Hugging Face `datasets`, in one run on the same rows.

MNIST (28 x 28 gray) and CIFAR-10 (32 x 32 RGB), 10,000 training rows of each (all of them at full scale), written as
PNG in Hugging Face Parquet and as an ImageFolder. Both sides end with the same array (n, height, width, channel)
uint8, which is compared. The files are in the page cache; reading runs three times on each side, in turn, and the
fastest counts.

* `decant`: open the source, choose the rules, decode, stack, in one process; `decant_workers`: with DECANT_WORKERS.
* `datasets`: load_dataset, decode, stack, in one process. `prepare_seconds` is what load_dataset takes the first
  time, when it makes a copy of the source in its cache; that is not counted. `open_seconds` is what it takes from
  then on; that is.

`parquet.ratio` and `image_folder.ratio` are decant / datasets in rows per second, the smaller of the two sets'
ratios. `decode_ratio` leaves out `open_seconds` on the peer's side only: then both sides spend nearly all of their
time in Pillow.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks._stages import dataset
from decant.data.decode import choose_rules, decode_batches
from decant.data.export import write_huggingface, write_image_folder
from decant.data.ingest import SAMPLE_ROWS, choose_parts, sample_rules, write_part
from decant.data.settings import IngestSettings
from decant.data.sources import open_source
from decant.errors import StageError
from decant.runtime import Progress

ROWS = {"small": 10_000, "full": None}
SETS = ("mnist", "cifar10")
REPEATS = 3
Result = TypeVar("Result")


def run(scale: str, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in SETS:
        with tempfile.TemporaryDirectory() as folder:
            write_layouts(Path(folder), dataset(name), ROWS[scale], seed)
            for layout in ("parquet", "image_folder"):
                found = compare(Path(folder), layout)
                figures |= {f"{layout}.{name}.{key}": value for key, value in found.items()}
    for layout in ("parquet", "image_folder"):
        for key in ("ratio", "ratio_workers", "decode_ratio"):
            figures[f"{layout}.{key}"] = min(figures[f"{layout}.{name}.{key}"] for name in SETS)
    return figures


def write_layouts(folder: Path, source: str, limit: int | None, seed: int) -> None:
    """`folder/parquet/train.parquet` and `folder/image_folder/<class>/<id>.png`, of the same rows."""
    settings, rng = IngestSettings(source=source, limit=limit), np.random.default_rng(seed)
    rows = open_source(source, test_fraction=0.2, rng=rng)
    part, _ = choose_parts(rows, settings, rng)
    table = folder / "table.parquet"
    write_part(table, part, sample_rules(part, settings), rows.class_names, source, Progress("write", len(part.rows)))
    write_huggingface(folder / "parquet/train.parquet", table)
    write_image_folder(folder / "image_folder", table)


def compare(folder: Path, layout: str) -> dict[str, float]:
    """Rows per second of each side, and their ratios."""
    prepare_seconds, _ = timed(lambda: load_peer(folder, layout))
    open_seconds, peer = timed(lambda: load_peer(folder, layout))
    source = str(folder / layout)
    best = dict.fromkeys(("decant", "decant_workers", "datasets"), np.inf)
    for _ in range(REPEATS):
        with workers(1):
            seconds, ours = timed(lambda: read_decant(source))
        best["decant"] = min(best["decant"], seconds)
        best["decant_workers"] = min(best["decant_workers"], timed(lambda: read_decant(source))[0])
        seconds, theirs = timed(lambda: read_peer(peer))
        best["datasets"] = min(best["datasets"], seconds)
        if contents(ours) != contents(theirs):
            raise StageError(f"{layout}: the two sides read different pixels, so their times can't be compared")
    decode_seconds = best["datasets"]
    best["datasets"] += open_seconds
    figures = {f"{side}.rows_per_second": len(ours) / seconds for side, seconds in best.items()}
    return figures | {
        "ratio": best["datasets"] / best["decant"],
        "ratio_workers": best["datasets"] / best["decant_workers"],
        "decode_ratio": decode_seconds / best["decant"],
        "datasets.prepare_seconds": prepare_seconds,
        "datasets.open_seconds": open_seconds,
    }


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


@contextmanager
def workers(count: int) -> Iterator[None]:
    before = os.environ.get("DECANT_WORKERS")
    os.environ["DECANT_WORKERS"] = str(count)
    yield
    if before is None:
        del os.environ["DECANT_WORKERS"]
    else:
        os.environ["DECANT_WORKERS"] = before


def read_decant(source: str) -> np.ndarray:
    split = open_source(source, test_fraction=0.2, rng=np.random.default_rng(0)).train
    rows = np.arange(len(split))
    sample = np.linspace(0, len(rows) - 1, SAMPLE_ROWS).astype(np.int64)
    rules = choose_rules((item for _, items in split.read(np.unique(sample)) for item in items), None, "auto")
    return np.concatenate([decoded.pixels for decoded in decode_batches(split.read(rows), rules)])


def load_peer(folder: Path, layout: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    cache = str(folder / "cache")
    if layout == "parquet":
        files = str(folder / "parquet/train.parquet")
        found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    else:
        found = datasets.load_dataset("imagefolder", data_dir=str(folder / layout), split="train", cache_dir=cache)
    return found.select_columns("image")


def read_peer(peer: Any) -> np.ndarray:
    """In batches, which is its faster way for nearly all of these files."""
    batches = peer.iter(1000)
    parts = [np.stack([np.asarray(image) for image in batch["image"]]) for batch in batches]
    pixels = np.concatenate(parts)
    return pixels if pixels.ndim == 4 else pixels[..., None]


def contents(pixels: np.ndarray) -> list[int]:
    """What was read, whatever the order of the rows."""
    return sorted(hash(image.tobytes()) for image in pixels)
