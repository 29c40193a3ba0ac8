"""Reads the affected points that a user lists in a CSV: images with the wrong label that a model predicted for them."""

from pathlib import Path

import numpy as np
import pandas as pd

from decant.data.decode import Rules, decode_batch
from decant.data.images import Images
from decant.errors import SourceError


def read_affected(path: Path, like: Images) -> Images | None:
    """Reads the user's affected points in the training rows' shape; None where the file is missing or has no rows.

    path: a CSV with the columns `image` (a file, relative to the CSV) and `predicted` (a class name). like: the
    training rows. The labels of the points are the predicted ones.

    Raises: SourceError naming the line for an unknown class or an image that can't be read.
    """
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not a CSV file with the columns image,predicted ({error})") from error
    for column in ("image", "predicted"):
        if column not in table:
            raise SourceError(f"{path}: column {column!r} expected, {', '.join(table.columns)} found")
    if not len(table):
        return None
    known = {name: label for label, name in enumerate(like.info.class_names)}
    for line, name in enumerate(table["predicted"], start=2):
        if name not in known:
            raise SourceError(f"{path}, line {line}: one of {', '.join(known)} expected, {name!r} found")
    files = [str(path.parent / name) for name in table["image"]]
    height, width, channels = like.shape
    decoded = decode_batch((np.arange(len(files)), [*files]), Rules(height, width, 1 if channels == 1 else 3))
    for row, reason in decoded.rejected:
        raise SourceError(f"{path}, line {row + 2}: {files[row]}: {reason}")
    labels = np.array([known[name] for name in table["predicted"]], np.int32)
    return Images(np.arange(len(files)), decoded.pixels, labels, like.info)
