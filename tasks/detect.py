"""detect: which training rows cause the affected points? Influence finds them, and they are dropped.

Affected points are images with the wrong label that a user saw predicted. They come from data/inputs/affected.csv
(columns ``image``: a file's path relative to the CSV, ``predicted``: a class name) when it has rows, else from
`simulate`. Without any, the stage says so and passes the rows through.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from decant.data.decode import Rules, decode_batch
from decant.data.images import Images
from decant.data.tables import apply_verdicts, read_images, write_images, write_verdicts
from decant.detectors.base import Detection
from decant.detectors.detect import detect as find_causes
from decant.detectors.detect import passes
from decant.detectors.settings import DetectSettings
from decant.errors import SourceError
from decant.influence.factor_cache import own_folder
from decant.models import networks
from decant.runtime import Progress, be_deterministic, device
from decant.summaries import DetectSummary

HOW_TO = "list images and their wrongly predicted classes in {} (columns image,predicted) to trace them"


def run(
    *, seed: int, detect: DetectSettings, train: Path, model: Path, affected: Path, own_affected: Path, out: Path
) -> DetectSummary:
    rows = read_images(train)
    points = read_affected(own_affected, rows)
    if points is None:
        points = read_images(affected)
    if not detect.enabled:
        points = points.select(np.zeros(len(points), bool))
    be_deterministic()
    progress = Progress("detect", passes(points) * len(rows))
    network = networks.load(model)[0].to(device())
    cache = own_folder()  # a run that was stopped goes on from it
    found = find_causes(network, rows, points, detect, seed=seed, on_rows=progress.step, cache=cache)
    verdicts = verdicts_of(rows, found)
    kept = apply_verdicts(rows, verdicts)
    write_images(out / "train.parquet", kept)
    write_images(out / "affected.parquet", points)
    write_verdicts(out / "verdicts.parquet", verdicts)
    return DetectSummary(
        rows_in=len(rows),
        rows_out=len(kept),
        flagged=int(found.flagged.sum()),
        affected_points=found.points,
        left_out=found.left_out,
        measure=found.measure,
        expected_false_alarms=None if found.false_alarms is None else round(found.false_alarms, 2),
        note=note_of(found, len(points), own_affected) if detect.enabled else "switched off: all rows pass through",
    )


def note_of(found: Detection, given: int, own_affected: Path) -> str:
    return found.note if given else f"{found.note}: all rows pass through; {HOW_TO.format(own_affected)}"


def verdicts_of(rows: Images, found: Detection) -> pd.DataFrame:
    """One verdict per row; its score is what `found.measure` says, and the flagged rows are dropped."""
    reasons = np.where(found.flagged, "among the rows that cause the affected points", "not among the rows that do")
    return pd.DataFrame(
        {
            "id": rows.ids,
            "stage": "detect",
            "score": found.scores,
            "flagged": found.flagged,
            "action": np.where(found.flagged, "drop", "keep"),
            "reason": reasons if found.points else "no affected point to trace",
        }
    )


def read_affected(path: Path, like: Images) -> Images | None:
    """The user's affected points, made like the training rows; None where the file is missing or has no rows.

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
