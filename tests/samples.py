"""Small real data for tests: scikit-learn's digits, enlarged to 16 x 16 as ingest does, a fixed split."""

from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

from decant.data.images import DatasetInfo, Images

ROOT = Path(__file__).parents[1]
INFO = DatasetInfo(class_names=tuple("0123456789"), source="digits", checksum="test")


@cache
def digits() -> tuple[Images, Images]:
    """(1,437 training rows, 360 test rows), 16 x 16 gray."""
    bunch = load_digits()
    large = ndimage.zoom(bunch.images * 255 / 16, (1, 2, 2), order=1, grid_mode=True, mode="nearest")
    pixels = np.rint(large.clip(0, 255)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = order[:1437], order[1437:]
    train, test = (Images(np.arange(len(rows)), pixels[rows], labels[rows], INFO) for rows in parts)
    return train, test
