"""Small real data for tests: scikit-learn's digits at 16 x 16, a fixed split."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from decant.tables import DatasetInfo, Images

INFO = DatasetInfo(class_names=tuple("0123456789"), source="digits", checksum="test")


@cache
def digits() -> tuple[Images, Images]:
    """(1,437 training rows, 360 test rows), 16 x 16 gray, pixels doubled from 8 x 8."""
    bunch = load_digits()
    pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8).repeat(2, 1).repeat(2, 2)[..., None]
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = order[:1437], order[1437:]
    train, test = (Images(np.arange(len(rows)), pixels[rows], labels[rows], INFO) for rows in parts)
    return train, test
