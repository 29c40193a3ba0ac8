"""Cells of the purification tables: one dataset, poisoned one way, cleaned one way, one classifier, one seed.

benchmarks/dvc.yaml lists them: the stages `rows`, then `poison-TABLE`, then `cell-TABLE`. `cells` brings those of a
table up to date and returns their accuracies.

    python -m benchmarks._unlearnable rows SCALE OUT
    python -m benchmarks._unlearnable poison ROWS SCALE ATTACK SEED OUT [--strength TIMES] [--percent SHARE]
    python -m benchmarks._unlearnable train ROWS POISONED SCALE METHOD NETWORK SEED OUT
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from benchmarks._cells import Cell, definition, figures, run_all
from benchmarks._rows import TRAIN, entry, ingest_to, planted
from decant.files import write_json


def rows(scale: str, out: Path) -> None:
    """Write train.parquet and test.parquet of the scale's dataset, never poisoned."""
    ingest_to(out, scale)


def poison(rows: Path, scale: str, attack: str, seed: int, out: Path, strength: float, percent: int) -> None:
    """Write the training rows as that attack leaves them; `clean` is no attack."""
    from decant.data.tables import read_images, write_images

    entries = [] if attack == "clean" else [entry(scale, attack, strength=strength, percent=percent)]
    write_images(out, planted(read_images(rows / "train.parquet"), entries, seed))


def train(rows: Path, poisoned: Path, scale: str, method: str, network: str, seed: int, out: Path) -> None:
    """Write the clean test accuracy of a classifier trained on the poisoned rows under a purification method."""
    from dataclasses import asdict

    from decant.data.tables import read_images
    from decant.models.settings import TrainSettings
    from decant.models.training import accuracy
    from decant.purify.methods.base import train_with
    from decant.runtime import be_deterministic
    from decant.settings import load

    be_deterministic()
    settings = load(TrainSettings, {**asdict(TRAIN[scale]), "network": network}, "train")
    model = train_with(method, read_images(poisoned), settings, seed=seed)
    write_json(out, {"accuracy": accuracy(model, read_images(rows / "test.parquet"))})


def matrix(table: str) -> dict[str, list[Any]]:
    """The axes of a table (`small`, `small-bounds`, ...): attack, countermeasure, network, seed, some also percent."""
    return definition(f"cell-{table}")["matrix"]


def cells(scale: str, table: str, **chosen: list[Any]) -> list[tuple[dict[str, Any], float]]:
    """(the cell's value on each axis, its accuracy), for the chosen values of an axis; of other axes all."""
    axes = {**matrix(table), **chosen}
    wanted = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    poisons = [tuple(cell[axis] for axis in definition(f"poison-{table}")["matrix"]) for cell in wanted]
    run_all([Cell("rows", (scale,))])
    run_all([Cell(f"poison-{table}", values) for values in dict.fromkeys(poisons)])
    found = figures(f"cell-{table}", (tuple(cell.values()) for cell in wanted))
    return [(cell, found[tuple(cell.values())]["accuracy"]) for cell in wanted]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks._unlearnable")
    actions = parser.add_subparsers(dest="action", required=True)
    for action, arguments in (
        (rows, "scale out"),
        (poison, "rows scale attack seed out"),
        (train, "rows poisoned scale method network seed out"),
    ):
        command = actions.add_parser(action.__name__)
        command.set_defaults(action=action)
        for name in arguments.split():
            command.add_argument(
                name, type={"seed": int}.get(name, Path if name in ("rows", "poisoned", "out") else str)
            )
        if action is poison:
            command.add_argument("--strength", type=float, default=1, help="times the scale's strength of the attack")
            command.add_argument("--percent", type=int, default=100, help="of the rows that carry its noise")
    options = vars(parser.parse_args(argv))
    options.pop("action")(**options)


if __name__ == "__main__":
    main(sys.argv[1:])
