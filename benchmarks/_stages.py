"""Runs the stages of dvc.yaml one after the other in a folder of their own, without DVC and Prefect."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from decant.errors import StageError
from decant.files import read_json

ROOT = Path(__file__).parents[1]


def params(seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The repository's params.yaml with a seed and with `block.key` changes."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["seed"] = seed
    for name, value in changes.items():
        block, key = name.split(".")
        values[block][key] = value
    return values


def run_stages(folder: Path, values: Mapping[str, Any], *, start: str | None = None) -> dict[str, float]:
    """Runs all stages (or those from `start` on, over what an earlier run left); returns seconds per stage."""
    (folder / "data").mkdir(exist_ok=True)
    inputs = folder / "data/inputs"
    if not inputs.exists():
        inputs.symlink_to(ROOT / "data/inputs")
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    names = list(stages)
    return {name: run_command(folder, name, stages[name]["cmd"]) for name in names[names.index(start or names[0]) :]}


def run_command(folder: Path, name: str, command: str) -> float:
    """Seconds of one stage, interpreter start and imports included."""
    argv = command.split()
    assert argv[0] == "python", command
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *argv[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"{name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return time.perf_counter() - started


def metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


def dataset(name: str) -> str:
    """`ingest.source` of a public dataset: a folder of DECANT_DATA if that is set, else a torchvision download."""
    folder = os.environ.get("DECANT_DATA")
    named = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}[name]
    return str(Path(folder, name)) if folder else f"torchvision:{named}"
