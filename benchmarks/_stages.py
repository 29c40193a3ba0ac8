"""Runs the stages of dvc.yaml one after the other in a folder of their own, without DVC and Prefect."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from decant import paths
from decant.errors import StageError
from decant.files import read_json
from decant.steps import ORACLE, STEPS

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
    (folder / paths.DATA).mkdir(exist_ok=True)
    inputs = folder / paths.INPUTS
    if not inputs.exists():
        inputs.symlink_to(ROOT / paths.INPUTS)
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


def pipeline_figures(case: str, seed: int, changes: Mapping[str, Any]) -> dict[str, float]:
    """One run of all stages with changed parameters: `case.figure` and `case.seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = run_stages(Path(folder), params(seed, changes))
        figures = summary(metrics(Path(folder)))
    return {f"{case}.{key}": value for key, value in {**figures, "seconds": sum(seconds.values())}.items()}


def summary(found: dict[str, Any]) -> dict[str, float]:
    """The figures that the bars speak of, from metrics.json."""
    received, cleaned = found["as_received"], found["cleaned"]
    oracle = found.get("oracle", received)  # nothing was planted: the same rows
    measured = [step.key for step in (*STEPS, ORACLE) if step.key in found]
    figures: dict[str, float] = {f"{step}.accuracy": found[step]["accuracy"] for step in measured}
    figures |= {
        "gain": cleaned["accuracy"] - received["accuracy"],
        "gap": oracle["accuracy"] - cleaned["accuracy"],
        "rows_lost": 1 - cleaned["rows"] / received["rows"],
        "reviews": found["reviews"],
    }
    if "poison_success" in received:
        figures |= {"poison_before": received["poison_success"], "poison_after": cleaned["poison_success"]}
    judged = [(stage, key) for stage in ("verify", "detect") for key in ("precision", "recall")]
    return figures | {f"{stage}.{key}": found[stage][key] for stage, key in judged if key in found.get(stage, {})}


def metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / paths.METRICS)


TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def dataset(name: str) -> str:
    """`ingest.source` of a public dataset: a folder of DECANT_DATA if that is set, else a torchvision download."""
    folder = os.environ.get("DECANT_DATA")
    if folder:
        return str(Path(folder, name))
    if name not in TORCHVISION:
        raise StageError(f"{name}: torchvision has no such download; put its Parquet files into DECANT_DATA/{name}")
    return f"torchvision:{TORCHVISION[name]}"
