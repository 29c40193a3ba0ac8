"""Runs cells of tables, the matrix stages of benchmarks/dvc.yaml, a DVC repository of its own.

It is one of its own so that the pipeline's `dvc status` doesn't speak of them. `run_all` brings stale cells up to date,
as many at a time as there are GPUs (DECANT_JOBS overrides; 1 on a CPU). Where DVC is not installed the same commands
run one after the other, and a cell whose file exists is not run again.
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from decant.errors import StageError

HERE = Path(__file__).parent


def definition() -> dict[str, Any]:
    return yaml.safe_load((HERE / "dvc.yaml").read_text(encoding="utf-8"))


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
