"""Cells of the purification tables: one dataset, poisoned one way, cleaned one way, one classifier, one seed.

benchmarks/dvc.yaml lists them as matrix stages (`rows`, then `poison-SCALE`, then `cell-SCALE`); `cells` brings them up
to date and returns their figures.

    python -m benchmarks._unlearnable rows SCALE OUT
    python -m benchmarks._unlearnable poison ROWS SCALE ATTACK SEED OUT
    python -m benchmarks._unlearnable train ROWS POISONED SCALE COUNTERMEASURE NETWORK SEED OUT
"""

import itertools
import sys
from pathlib import Path
from typing import Any

from benchmarks._cells import HERE, bring_up_to_date, definition, run_all
from benchmarks._rows import TRAIN, entry, ingest_to, planted
from decant.files import read_json, write_json


def rows(scale: str, out: Path) -> None:
    """train.parquet and test.parquet of the scale's dataset, never poisoned."""
    ingest_to(out, scale)


def poison(folder: Path, scale: str, attack: str, seed: int, out: Path) -> None:
    """The training rows as that attack leaves them; `clean` leaves them alone."""
    from decant.data.tables import read_images, write_images

    entries = [] if attack == "clean" else [entry(scale, attack)]
    write_images(out, planted(read_images(folder / "train.parquet"), entries, seed))


def train(folder: Path, poisoned: Path, scale: str, countermeasure: str, network: str, seed: int, out: Path) -> None:
    """Clean test accuracy of a classifier trained on the poisoned rows under a countermeasure."""
    from dataclasses import asdict

    from decant.data.tables import read_images
    from decant.models.settings import TrainSettings
    from decant.models.training import accuracy
    from decant.purify.methods.base import train_with
    from decant.runtime import be_deterministic
    from decant.settings import load

    be_deterministic()
    settings = load(TrainSettings, {**asdict(TRAIN[scale]), "network": network}, "train")
    model = train_with(countermeasure, read_images(poisoned), settings, seed=seed)
    write_json(out, {"accuracy": accuracy(model, read_images(folder / "test.parquet"))})


def matrix(table: str) -> dict[str, list[Any]]:
    """attack, countermeasure, network, seed: what a table (`small`, `small-bounds`, ...) is made of."""
    return definition()["stages"][f"cell-{table}"]["matrix"]


def cells(table: str, **chosen: list[Any]) -> dict[tuple[Any, ...], dict[str, float]]:
    """(attack, countermeasure, network, seed) to the cell's figures, for the chosen values of each; the rest: all."""
    scale, axes = table.split("-")[0], {**matrix(table), **chosen}
    wanted = list(itertools.product(*(axes[axis] for axis in ("attack", "countermeasure", "network", "seed"))))
    poisons = list(dict.fromkeys((attack, seed) for attack, _, _, seed in wanted))
    bring_up_to_date(f"rows@{scale}")
    run_all([f"poison-{scale}@{attack}-{seed}" for attack, seed in poisons])
    run_all([f"cell-{table}@{'-'.join(map(str, cell))}" for cell in wanted])
    return {cell: read_json(HERE / f"cells/{scale}/{'-'.join(map(str, cell))}.json") for cell in wanted}


def main(argv: list[str]) -> None:
    action, *values = argv
    if action == "rows":
        rows(values[0], Path(values[1]))
    elif action == "poison":
        poison(Path(values[0]), values[1], values[2], int(values[3]), Path(values[4]))
    else:
        train(Path(values[0]), Path(values[1]), values[2], values[3], values[4], int(values[5]), Path(values[6]))


if __name__ == "__main__":
    main(sys.argv[1:])
