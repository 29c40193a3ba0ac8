"""Cells of a table: one dataset, poisoned one way, cleaned one way, one classifier, one seed; DVC caches and resumes.

benchmarks/dvc.yaml lists them as matrix stages (`rows`, then `poison-SCALE`, then `cell-SCALE`); it is a DVC repository
of its own, so that the pipeline's `dvc status` doesn't speak of them. `cells` brings stale ones up to date, as many at
a time as there are GPUs (DECANT_JOBS overrides; 1 on a CPU), and returns their figures. Where DVC is not installed the
same commands run one after the other, and a cell whose file exists is not run again.

    python -m benchmarks._cells rows SCALE OUT
    python -m benchmarks._cells poison ROWS SCALE ATTACK SEED OUT
    python -m benchmarks._cells train ROWS POISONED SCALE COUNTERMEASURE NETWORK SEED OUT
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from benchmarks._rows import TRAIN, entry, ingest_to, planted
from decant.errors import StageError
from decant.files import read_json, write_json

HERE = Path(__file__).parent

# ---------------------------------------------------------------------------------------------------------------------
# What a cell is made of
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Bringing them up to date
# ---------------------------------------------------------------------------------------------------------------------


def matrix(table: str) -> dict[str, list[Any]]:
    """attack, countermeasure, network, seed: what a table (`small`, `small-bounds`, ...) is made of."""
    return definition()["stages"][f"cell-{table}"]["matrix"]


def definition() -> dict[str, Any]:
    return yaml.safe_load((HERE / "dvc.yaml").read_text(encoding="utf-8"))


def cells(table: str, **chosen: list[Any]) -> dict[tuple[Any, ...], dict[str, float]]:
    """(attack, countermeasure, network, seed) to the cell's figures, for the chosen values of each; the rest: all."""
    scale, axes = table.split("-")[0], {**matrix(table), **chosen}
    wanted = list(itertools.product(*(axes[axis] for axis in ("attack", "countermeasure", "network", "seed"))))
    poisons = list(dict.fromkeys((attack, seed) for attack, _, _, seed in wanted))
    bring_up_to_date(f"rows@{scale}")
    run_all([f"poison-{scale}@{attack}-{seed}" for attack, seed in poisons])
    run_all([f"cell-{table}@{'-'.join(map(str, cell))}" for cell in wanted])
    return {cell: read_json(HERE / f"cells/{scale}/{'-'.join(map(str, cell))}.json") for cell in wanted}


def run_all(stages: list[str]) -> None:
    slots: SimpleQueue[int] = SimpleQueue()
    jobs = int(os.environ.get("DECANT_JOBS", gpus() or 1))
    for slot in range(jobs):
        slots.put(slot)

    def run(stage: str) -> None:
        slot = slots.get()
        try:
            bring_up_to_date(stage, gpu=slot if gpus() else None)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, stages))


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def bring_up_to_date(stage: str, *, gpu: int | None = None) -> None:
    """One stage, through DVC where it is installed."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    if importlib.util.find_spec("dvc"):
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    else:
        command, out = plain_command(stage)
        if out.exists():
            return
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"{stage}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    print(f"  {stage}", flush=True)


def plain_command(stage: str) -> tuple[list[str], Path]:
    """(the stage's own command, its output), with the matrix's values filled in."""
    name, _, values = stage.partition("@")
    entry = definition()["stages"][name]
    command, out = entry["cmd"], next(iter(entry["outs"]))
    out = next(iter(out)) if isinstance(out, dict) else out
    for axis, value in zip(entry["matrix"], values.split("-"), strict=True):
        command, out = (text.replace(f"${{item.{axis}}}", value) for text in (command, out))
    return [sys.executable, *command.split()[1:]], HERE / out


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
