"""Overhead of Prefect: `decant run` beside plain `dvc repro`, cold and with nothing to do, in fresh clones.

* `demo`: the pipeline of this repository with its default parameters. `demo.cold_seconds` is what `make demo` takes the
  first time, installation apart (`server_start_seconds` included); `demo.again_seconds` the second time.
* `empty`: a chain of 12 stages that only copy a file: nothing but orchestration, with the Prefect server running.

`*.repro_*` is `dvc repro` on the same; a ratio is `decant run` divided by it. `same_lock` is 1 when both left a
byte-identical dvc.lock. The server is one of our own, on a free port, and is stopped at the end.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from decant.errors import StageError

ROOT = Path(__file__).parents[1]
EMPTY_STAGES = 12
DVC = (sys.executable, "-m", "dvc")
DECANT = (sys.executable, "-m", "decant.cli.main")


def run(scale: str, seed: int) -> dict[str, float]:
    """Both scales are the same; the pipeline's seed is that of params.yaml, so that every run does the same work."""
    del scale, seed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with prefect_server(folder / "prefect") as (environment, started):
            figures = {"server_start_seconds": started}
            for kind, make in (("empty", make_empty), ("demo", clone)):
                flow, repro = (
                    make(folder / f"{kind}-flow"),
                    make(folder / f"{kind}-repro"),
                )
                figures |= {f"{kind}.{key}": value for key, value in beside(flow, repro, environment).items()}
    figures["demo.cold_seconds"] += figures["server_start_seconds"]
    return figures


def beside(flow: Path, repro: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds of `decant run` in one folder and of `dvc repro` in another with the same contents."""
    found = {
        "cold_seconds": timed(flow, environment, *DECANT, "run"),
        "repro_cold_seconds": timed(repro, environment, *DVC, "repro"),
        "again_seconds": timed(flow, environment, *DECANT, "run"),
        "repro_again_seconds": timed(repro, environment, *DVC, "repro"),
    }
    found["cold_ratio"] = found["cold_seconds"] / found["repro_cold_seconds"]
    found["again_ratio"] = found["again_seconds"] / found["repro_again_seconds"]
    found["same_lock"] = float((flow / "dvc.lock").read_bytes() == (repro / "dvc.lock").read_bytes())
    return found


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def make_empty(folder: Path) -> Path:
    """A project whose stages cost nothing."""
    folder.mkdir()
    (folder / "0").write_text("x")
    (folder / "params.yaml").write_text("seed: 0\n")
    stages = {
        f"stage_{i}": {"cmd": f"cp {i} {i + 1}", "deps": [str(i)], "outs": [str(i + 1)]} for i in range(EMPTY_STAGES)
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=folder, check=True)
    return folder


def timed(folder: Path, environment: Mapping[str, str], *command: str) -> float:
    """Wall seconds of a command that must succeed. Code comes from the folder if it is a clone, else from here."""
    code = folder if (folder / "flows").is_dir() else ROOT
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise StageError(f"{' '.join(command[1:])} in {folder.name}: {(done.stdout + done.stderr)[-500:]}")
    return seconds


@contextmanager
def prefect_server(home: Path) -> Iterator[tuple[dict[str, str], float]]:
    """(the environment in which commands find it, seconds that it took to start)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {
        "PATH": path,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_PORT": str(port),
    }
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"},
        **own,
    }
    start = (
        sys.executable,
        "-c",
        "from flows import server; server.ensure_server(print)",
    )
    try:
        yield environment, timed(ROOT, environment, *start)
    finally:
        if (home / "server.pid").is_file():
            os.kill(int((home / "server.pid").read_text()), signal.SIGTERM)
            time.sleep(3)  # it closes its database; then its folder is removed
