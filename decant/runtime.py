"""The machine and the run: device, number of workers, progress of a stage, time and memory of a run.

None of this is a parameter, because none of it may make a stage stale:

* ``DECANT_DEVICE``   ``auto`` (default), ``cpu``, ``cuda`` or ``cuda:N``
* ``DECANT_WORKERS``  processes that decode images (default: the cores)
* ``DECANT_CACHE``    folder for what can be had again (default ``~/.cache/decant``)
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import SettingsError
from decant.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import torch


def device() -> "torch.device":
    """The device that DECANT_DEVICE names; `auto` is the first GPU, or the CPU where there is none."""
    import torch

    wanted = os.environ.get("DECANT_DEVICE", "auto")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (wanted == "cpu" or wanted.startswith("cuda")):
        raise SettingsError(f"DECANT_DEVICE: auto, cpu, cuda or cuda:N expected, {wanted!r} found")
    if wanted != "cpu" and not torch.cuda.is_available():
        raise SettingsError(f"DECANT_DEVICE={wanted}: no GPU that PyTorch can use; set it to auto or cpu")
    return torch.device(wanted)


def cache_folder() -> Path:
    """The folder that DECANT_CACHE names."""
    return Path(os.environ.get("DECANT_CACHE", "~/.cache/decant")).expanduser()


def writable(folder: Path) -> Path | None:
    """The folder, made if need be; None where we may not write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def workers() -> int:
    """The number of processes that decode images."""
    return int(os.environ.get("DECANT_WORKERS", os.cpu_count() or 1))


def be_deterministic() -> None:
    """Makes torch deterministic: the same input, parameters, seed and kind of machine give the same bytes.

    Call it before the first CUDA call.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


class Progress:
    """How far a stage is: a bar on a terminal, else ``::progress 37.5`` lines, which the flow turns into an artifact.

    >>> progress = Progress("purify_1", total=400)
    >>> progress.step()
    """

    MIN_SECONDS = 0.5  # between two lines; a stage of a thousand steps must not print a thousand lines

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done = name, max(1, total), 0
        self.started = self._last = time.monotonic()

    def step(self, steps: int = 1) -> None:
        """Counts steps that are done, and shows the progress from time to time."""
        self.done = min(self.total, self.done + steps)
        now = time.monotonic()
        if self.done < self.total and now - self._last < self.MIN_SECONDS:
            return
        self._last = now
        share = self.done / self.total
        if not sys.stdout.isatty():
            print(f"::progress {100 * share:.1f}", flush=True)
            return
        elapsed = now - self.started
        bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
        remaining = elapsed * (1 - share) / max(share, 1e-9)
        end = "\n" if self.done == self.total else ""
        line = f"\r{self.name:>10} {bar} {100 * share:5.1f} %  {elapsed:5.0f} s, {remaining:4.0f} s to go"
        print(line, end=end, flush=True)


@contextmanager
def recorded_run(stage: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Writes what differs from run to run (seconds, memory, date, device) to `folder/STAGE.json`, outside of DVC.

    Beside it, `runs.js` holds all records in the form that the report page can load from disk.
    """
    record: dict[str, Any] = {"stage": stage, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    started = time.perf_counter()
    yield record
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    record |= machine()
    write_json(folder / f"{stage}.json", record)
    write_text(folder / "runs.js", f"window.decantRuns = {json.dumps(read_runs(folder), sort_keys=True)};\n")


def read_runs(folder: Path) -> dict[str, Any]:
    """Stage name to its last run's record; empty when nothing ran here."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def machine() -> dict[str, Any]:
    """Device and versions. Asks torch only if the stage has imported it: that import alone costs seconds."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    torch_module = sys.modules.get("torch")
    if torch_module is not None and torch_module.cuda.is_available():
        facts["device"] = torch_module.cuda.get_device_name()
        facts["peak_gpu_mib"] = torch_module.cuda.max_memory_allocated() // 2**20
    return facts
