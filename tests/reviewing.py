"""A small review for tests: eight pictures of two classes, three of which are asked about."""

from pathlib import Path

import numpy as np

from decant.data.images import DatasetInfo, Images
from decant.data.tables import write_images
from decant.review.pictures import ReviewPictures
from decant.review.store import Store

CLASSES = ("cat", "dog", "2")
QUEUE = """id,given,suggested,trust,label,round,rows,why,like_given,like_suggested
11,cat,dog,0.2,,1,3,label disputed,14 16,15
12,dog,,,,1,3,likely false refusal,,
13,cat,2,0.9,,1,3,drawn at random,14,17
"""
REVIEWS = "id,given,answer,round,why\n14,cat,cat,0,drawn\n15,dog,dog,0,drawn\n"


def pictures_of(rows: int = 8) -> Images:
    """Rows 10, 11, ...: picture i is as bright as 20 i."""
    pixels = np.repeat(np.arange(rows, dtype=np.uint8) * 20, 6 * 6).reshape(rows, 6, 6, 1)
    info = DatasetInfo(class_names=CLASSES, source="test", checksum="0")
    return Images(np.arange(rows) + 10, pixels, np.arange(rows, dtype=np.int32) % 2, info)


def review_files(root: Path, queue: str = QUEUE) -> None:
    """The files of a review in `root`, where the decisions are a file that only has the old columns."""
    images = pictures_of()
    write_images(root / "data/purify_2/train.parquet", images)
    write_images(root / "data/simulate/train.parquet", images.with_pixels(255 - images.pixels))
    for path, text in {
        "data/verify/queue.csv": queue,
        "data/verify/reviews.csv": REVIEWS,
        "data/inputs/decisions.csv": "id,label\n",
        "dvc.yaml": "",
        "params.yaml": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def store_in(root: Path, expert: str = "") -> Store:
    data = root / "data"
    return Store(CLASSES, expert, data / "verify/queue.csv", data / "verify/reviews.csv", data / "inputs/decisions.csv")


def pictures_in(root: Path, *rows: int) -> ReviewPictures:
    return ReviewPictures(
        lambda: rows,
        {"verified": root / "data/purify_2/train.parquet", "received": root / "data/simulate/train.parquet"},
    )
