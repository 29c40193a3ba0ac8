"""baseline: train the models that the cleaned one is compared with.

All use the recipe and the seed of `train`, so that only their training rows differ:

* `received`: the data as received
* `purified`: the same rows after purification
* `oracle`: the same rows without the planted poison, the upper bound of a cleaning; only where `simulate` planted any
"""

import shutil
from pathlib import Path

from decant.data.tables import count_rows, read_images
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, steps_of, train_classifier
from decant.runtime import Progress, be_deterministic
from decant.summaries import BaselineSummary, Purify2Summary, SimulateSummary

NAMES = {"received": "as received", "purified": "after purification", "oracle": "before they were poisoned"}


def run(
    *, seed: int, train: TrainSettings, original: Path, simulate_dir: Path, purify_dir: Path, out: Path
) -> BaselineSummary:
    be_deterministic()
    planted = SimulateSummary.read(simulate_dir).planted
    purified = Purify2Summary.read(purify_dir).purified > 0
    tables = {"received": simulate_dir / "train.parquet"}
    tables |= {"purified": purify_dir / "train.parquet"} if purified else {}
    tables |= {"oracle": original} if planted else {}
    rows = count_rows(tables["received"])
    progress = Progress("baseline", len(tables) * steps_of(rows, train))
    for name, table in tables.items():
        images = read_images(table)
        model = train_classifier(images, train, seed=seed, on_step=progress.step)
        networks.save(out / f"{name}.safetensors", model, architecture_of(images, train))
    if not purified:
        shutil.copyfile(out / "received.safetensors", out / "purified.safetensors")  # the same rows, the same model
    note = f"trained a model on {rows} rows {', and one on them '.join(NAMES[name] for name in tables)}"
    return BaselineSummary(rows_in=rows, rows_out=rows, oracle=planted, note=note)
