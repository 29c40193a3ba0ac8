"""A pipeline of five quick stages in a folder of its own, and one Prefect server for all tests that need one.

Its stages write what they read, so that each file says how it came about. What a stage does besides is an order in
the file `orders/STAGE`, which DVC doesn't know: `sleep 30`, `exit 2`, `stubborn 30` (deaf to SIGINT), `spawn 30`
(leaves a child behind).
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("ingest", "baseline", "purify_1", "train", "evaluate")

WORK = """
import os, pathlib, signal, subprocess, sys, time
name, out, *inputs = sys.argv[1:]
order = pathlib.Path("orders", name)
word, _, number = (order.read_text() if order.exists() else "").strip().partition(" ")
pathlib.Path("started").mkdir(exist_ok=True)
if word == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("started", name).write_text(str(os.getpid()))
print("::progress 50.0", flush=True)
if word == "spawn":
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({number})", "toy"])
if word in ("sleep", "stubborn"):
    time.sleep(float(number))
if word == "exit":
    print("first words")
    print(f"{name}: the input is bad", file=sys.stderr)
    sys.exit(int(number))
pathlib.Path("data").mkdir(exist_ok=True)
pathlib.Path(out).write_text(f"{name}(" + ",".join(pathlib.Path(i).read_text() for i in inputs) + ")")
print("::progress 100.0", flush=True)
print(f"{name}: wrote one file")
"""

PIPELINE = """
stages:
  ingest:
    cmd: python work.py ingest data/ingest
    deps: [work.py]
    params: [seed, ingest]
    outs: [data/ingest]
  baseline:
    cmd: python work.py baseline data/baseline data/ingest
    deps: [work.py, data/ingest]
    params: [train]
    outs: [data/baseline]
    meta: {tags: [gpu]}
  purify_1:
    cmd: python work.py purify_1 data/purify_1 data/ingest
    deps: [work.py, data/ingest]
    params: [purify_1]
    outs: [data/purify_1]
    meta: {tags: [gpu], retries: 1, timeout: 60}
  train:
    cmd: python work.py train data/train data/purify_1
    deps: [work.py, data/purify_1]
    params: [train]
    outs: [data/train]
  evaluate:
    cmd: python work.py evaluate data/evaluate data/baseline data/train
    deps: [work.py, data/baseline, data/train]
    outs: [data/evaluate]
"""


class Toy:
    """The toy pipeline in one folder."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def lock(self) -> Path:
        return self.root / "dvc.lock"

    def order(self, stage: str, words: str) -> None:
        (self.root / "orders").mkdir(exist_ok=True)
        (self.root / "orders" / stage).write_text(words)

    def obey_no_order(self) -> None:
        shutil.rmtree(self.root / "orders")

    def dvc(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "dvc", *words)

    def decant(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "decant.cli.main", *words)

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=self.root, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`decant`, left running. It hears a Ctrl-C also where a script in the background runs the tests."""
        return subprocess.Popen(
            [sys.executable, "-m", "decant.cli.main", *words], cwd=self.root, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def process_of(self, stage: str) -> int:
        """The process id of a stage that has been started; waits for it."""
        path = self.root / "started" / stage
        wait_until(lambda: path.is_file() and bool(path.read_text()), f"stage {stage} to start")
        return int(path.read_text())

    def processes(self) -> list[int]:
        """Every process that works in this folder."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _folder_of(pid) == self.root]


def _folder_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def environment() -> dict[str, str]:
    """Ours, where `python` is this interpreter and `flows` is found from any folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}


def wait_until(condition: Callable[[], bool], what: str, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the toy pipeline, never run."""
    root = tmp_path_factory.mktemp("toy")
    (root / "work.py").write_text(textwrap.dedent(WORK))
    (root / "dvc.yaml").write_text(PIPELINE)
    shutil.copy(ROOT / "params.yaml", root)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    toy = Toy(root)
    toy.dvc("init", "-q").check_returncode()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    return root


@pytest.fixture(scope="session")
def toy_template_done(toy_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after `dvc repro`."""
    root = tmp_path_factory.mktemp("done") / "toy"
    shutil.copytree(toy_template, root)
    Toy(root).dvc("repro", "-q").check_returncode()
    return root


@pytest.fixture
def toy(toy_template: Path, tmp_path: Path) -> Toy:
    """A toy of one's own, never run."""
    return _copy(toy_template, tmp_path / "toy")


@pytest.fixture
def toy_done(toy_template_done: Path, tmp_path: Path) -> Toy:
    """A toy of one's own, in which every stage is fresh."""
    return _copy(toy_template_done, tmp_path / "done")


def _copy(template: Path, root: Path) -> Toy:
    shutil.copytree(template, root, symlinks=True)
    return Toy(root.resolve())


@pytest.fixture
def in_toy(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The toy, with the test itself working in its folder."""
    monkeypatch.chdir(toy.root)
    return toy


@pytest.fixture
def in_toy_done(toy_done: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.chdir(toy_done.root)
    return toy_done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a Prefect server on a free port with a home of its own, for the whole test session."""
    from flows import server

    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    patch.setenv("PREFECT_SERVER_API_PORT", str(free_port()))
    patch.delenv("PREFECT_API_URL", raising=False)
    patch.setenv("DO_NOT_TRACK", "1")
    address = server.settle_environment()
    process = server.start(address)
    try:
        server.wait_for(address, process)
        yield address.ui
    finally:
        for pid in {process.pid, int((server.home() / "server.pid").read_text())}:  # a run that found none starts one
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
        process.wait(timeout=60)
        patch.undo()
