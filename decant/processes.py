"""Run a command in a process group of its own, so that it can be stopped with all that it started.

Prefect's cancel, Ctrl-C and a failure reach only our own process; what it started would keep running, on the GPU.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE = 5.0  # seconds between SIGINT, on which DVC drops its locks, and SIGKILL
POLL_SECONDS = 0.2  # between two looks whether a silent process has ended


@contextmanager
def process_group(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the command in a session of its own, its output in a pipe; ends its whole group with the block."""
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        end_group(process)
        with process:  # closes the pipe and takes the leader out of the process table
            pass


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a process group; kills what is left of it after the grace period. Returns when it is gone."""
    try:
        if _signal_group(process, signal.SIGINT):
            _wait_for_end(process)
    finally:  # also when a second Ctrl-C cuts the wait short
        if _signal_group(process, signal.SIGKILL):
            _wait_for_end(process)


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        process.poll()  # takes the leader out of the process table, where it would count as alive
        if not _signal_group(process, 0):
            return
        time.sleep(0.02)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Sends the signal (0: none); false when no process of the group is left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def output(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yields the process's lines as they come, and an empty one after POLL_SECONDS without. Ends with the process.

    It doesn't wait for the end of the output: a child that the process left behind may hold that open.
    """
    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    while True:
        ended = process.poll() is not None
        ready = bool(select.select([pipe], [], [], 0 if ended else POLL_SECONDS)[0])
        chunk = os.read(pipe, 2**16) if ready else b""
        if ended and not chunk:
            break
        if ready and not chunk:  # it has closed its output and works on
            time.sleep(POLL_SECONDS)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines or [b""])
    yield rest.decode(errors="replace")


def environment() -> dict[str, str]:
    """Our environment, in which `python` in a stage's cmd is this interpreter and its output comes line by line."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
