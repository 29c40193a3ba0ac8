"""Cells of tables: matrix stages of benchmarks/dvc.yaml, which is a DVC repository of its own.

It is one of its own so that the pipeline's `dvc status` doesn't speak of them. `figures` brings the cells of a table up
to date, as many at a time as there are GPUs (DECANT_JOBS overrides; 1 on a CPU), and reads what they measured. Where
DVC is not installed the same commands run, and a cell whose file exists is not run again.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from decant.errors import StageError
from decant.files import read_json

HERE = Path(__file__).parent


def definition(stage: str) -> dict[str, Any]:
    """A stage of benchmarks/dvc.yaml: `matrix`, `cmd`, `deps`, `outs`."""
    return yaml.safe_load((HERE / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]


@dataclass(frozen=True)
class Cell:
    """A stage, and its value on each axis of the stage's matrix, in the matrix's order."""

    stage: str
    values: tuple[str | int, ...]

    @property
    def address(self) -> str:
        """DVC's name for it."""
        return f"{self.stage}@{'-'.join(map(str, self.values))}"

    @property
    def command(self) -> list[str]:
        """What DVC runs, with this interpreter."""
        return [sys.executable, *self._filled(definition(self.stage)["cmd"]).split()[1:]]

    @property
    def output(self) -> Path:
        """The file or folder that it writes."""
        return HERE / self._filled(definition(self.stage)["outs"][0])

    def _filled(self, text: str) -> str:
        for axis, value in zip(definition(self.stage)["matrix"], self.values, strict=True):
            text = text.replace(f"${{item.{axis}}}", str(value))
        return text


def figures(stage: str, wanted: Iterable[tuple[str | int, ...]]) -> dict[tuple[str | int, ...], Any]:
    """Bring cells of a stage up to date, and read the JSON that each has written."""
    cells = {values: Cell(stage, values) for values in wanted}
    run_all(list(cells.values()))
    return {values: read_json(cell.output) for values, cell in cells.items()}


def run_all(cells: list[Cell]) -> None:
    """Bring cells up to date, one per GPU at a time."""
    slots: SimpleQueue[int] = SimpleQueue()
    jobs = int(os.environ.get("DECANT_JOBS", gpus() or 1))
    for slot in range(jobs):
        slots.put(slot)

    def run(cell: Cell) -> None:
        slot = slots.get()
        try:
            bring_up_to_date(cell, gpu=slot if gpus() else None)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def bring_up_to_date(cell: Cell, *, gpu: int | None = None) -> None:
    """Run a cell if it is stale: DVC decides, where it is installed.

    Raises: StageError with the last line of the cell's output, where it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", cell.address]
    if not importlib.util.find_spec("dvc"):
        if cell.output.exists():
            return
        command = cell.command
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"{cell.address}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    print(f"  {cell.address}", flush=True)
