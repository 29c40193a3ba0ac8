"""detect: find the training rows that cause the affected points by their influence, and drop them.

Affected points are images with the wrong label that a user saw predicted. They come from data/inputs/affected.csv
(columns ``image``: a file's path relative to the CSV, ``predicted``: a class name) when it has rows, else from
`simulate`. Without any, the stage says so and passes the rows through.
"""

from pathlib import Path

import numpy as np

from decant.data.tables import apply_verdicts, read_images, write_images, write_verdicts
from decant.detectors.affected import read_affected
from decant.detectors.detect import detect as find_causes
from decant.detectors.detect import passes, verdicts_of
from decant.detectors.settings import DetectSettings
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
    if not detect.enabled:
        note = "switched off: all rows pass through"
    elif not len(points):
        note = f"{found.note}: all rows pass through; {HOW_TO.format(own_affected)}"
    else:
        note = found.note
    return DetectSummary(
        rows_in=len(rows),
        rows_out=len(kept),
        flagged=int(found.flagged.sum()),
        affected_points=found.points,
        left_out=found.left_out,
        measure=found.measure,
        expected_false_alarms=None if found.false_alarms is None else round(found.false_alarms, 2),
        note=note,
    )
