"""What DVC knows: the stages of dvc.yaml in order, which are fresh, and how one is brought up to date.

Knows nothing of Prefect. All functions work in the current directory, the root of the workspace.

A stale stage runs through `flows.reproduce` in a process of its own: a long-lived one would run modules that it
imported before an edit, while DVC records the edited file's hash; and one failed CUDA call would spoil every later
stage. It gets a process group of its own (`decant.processes`): stopping DVC alone would leave the stage's command at
work on the GPU.

Cost: about 0.1 s for a fresh stage, 1.3 s of DVC for a stale one.
"""

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from decant.errors import DecantError, did_you_mean
from decant.processes import output, process_group
from decant.stage_locks import processes_on
from flows.source import source_changed

BUSY_PAUSE = 2.0  # seconds between two looks whether another DVC process has finished with a file
BUSY_PATIENCE = 900.0  # seconds after which we stop waiting for it
LAST_LINES = 15  # of a failed stage's output, kept for the message

StageOutcome = Literal["Unchanged", "Restored", "Done"]
OnLine = Callable[[str], None]
Slot = Callable[[], AbstractContextManager[None]]
"""A context that is held while a stage runs, such as the GPU."""


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, with what its `meta` tells the scheduler."""

    name: str
    upstream: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    retries: int = 0
    timeout: float | None = None
    """Seconds."""


class StageFailed(RuntimeError):
    """A stage was not brought up to date. The text is one line for people."""

    state = "Failed"
    """What the stage's state is called on Prefect's page."""

    def __init__(self, text: str, code: int = 1, lines: tuple[str, ...] = ()):
        super().__init__(text)
        self.code = code
        """Exit code of the stage's command; 2 means that its input is at fault."""
        self.lines = lines
        """The last lines that it printed."""


class StageTimedOut(StageFailed):
    """A stage ran past the timeout of its `meta`, and was stopped."""

    state = "TimedOut"


class StageBusy(StageFailed):
    """Another DVC process works on the stage's files."""

    state = "Busy"


def pipeline(targets: list[str] | None = None) -> list[Stage]:
    """The stages in the order in which `dvc repro` runs them, with `foreach` and `matrix` expanded.

    With targets: only those and what they need. Raises DecantError for a target that dvc.yaml doesn't have.
    """
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph  # an edge leads from a stage to one that it needs
        order = [stage for stage in networkx.dfs_postorder_nodes(graph) if not stage.is_data_source]
        names = [stage.addressing for stage in order]
        unknown = sorted(set(targets or ()) - set(names))
        if unknown:
            hint = did_you_mean(unknown[0], names)
            raise DecantError(f"no stage {unknown[0]!r} in dvc.yaml; there are: {', '.join(names)}{hint}")
        wanted = {stage for stage in order if not targets or stage.addressing in targets}
        wanted |= {needed for stage in wanted for needed in networkx.descendants(graph, stage)}
        upstream = {stage: [needed.addressing for needed in graph.successors(stage)] for stage in order}
        return [_stage(stage.addressing, upstream[stage], stage.meta or {}) for stage in order if stage in wanted]


def _stage(name: str, upstream: list[str], meta: dict[str, object]) -> Stage:
    tags, retries, timeout = meta.get("tags", []), meta.get("retries", 0), meta.get("timeout")
    if not (isinstance(tags, list) and isinstance(retries, int) and isinstance(timeout, int | float | None)):
        raise DecantError(f"dvc.yaml: {name}.meta: tags (a list), retries and timeout (numbers) expected, {meta} found")
    return Stage(name, tuple(sorted(upstream)), tuple(map(str, tags)), retries, timeout)


def is_fresh(stage: str) -> bool:
    """Whether the stage's code, inputs, parameters and outputs are those of dvc.lock. Raises StageBusy."""
    return not changes(stage)


def changes(stage: str) -> list[Any]:
    """What `dvc status` says of the stage; empty when it is fresh. Raises StageBusy."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            return repo.status(targets=[stage]).get(stage, [])
    except LockError as error:
        raise _busy(stage) from error


def bring_up_to_date(stage: Stage, on_line: OnLine, slot: Slot = nullcontext) -> StageOutcome:
    """Runs the stage if it is stale, waiting while another DVC process works on its files.

    `ingest` runs also when files behind `ingest.source` changed, which DVC doesn't see. `slot` is held around the run
    itself, not while it is found out whether the stage is stale.

    Raises: StageFailed; StageBusy when the wait takes too long.
    """
    deadline = time.monotonic() + BUSY_PATIENCE
    told = False
    while True:
        try:
            forced = stage.name == "ingest" and source_changed()
            if not forced and is_fresh(stage.name):
                return "Unchanged"
            with slot():
                return reproduce(stage, on_line, forced=forced)
        except StageBusy as busy:
            if time.monotonic() > deadline:
                raise
            if not told:
                on_line(f"{busy}; waiting for it")
            told = True
            time.sleep(BUSY_PAUSE)


def reproduce(stage: Stage, on_line: OnLine, *, forced: bool = False) -> StageOutcome:
    """Has DVC run the stage; `on_line` gets each line of output as it comes. Raises StageFailed."""
    command = [sys.executable, "-m", "flows.reproduce", stage.name, *["--force"] * forced]
    lines: deque[str] = deque(maxlen=200)
    ended = ""
    deadline = time.monotonic() + stage.timeout if stage.timeout else math.inf
    with process_group(command) as process:
        for line in output(process):
            if line.startswith("::ended "):
                ended = line
            elif line.strip():
                lines.append(line.rstrip())
                on_line(lines[-1])
            if time.monotonic() > deadline:
                raise StageTimedOut(f"{stage.name}: ran past its timeout of {stage.timeout:g} s and was stopped")
        code = process.wait()
    if not ended:  # DVC's own process has failed, or was killed
        raise _failure(stage.name, code, lines)
    _, outcome, stage_code = ended.split()
    if outcome == "Busy":
        raise _busy(stage.name)
    if outcome == "Failed":
        raise _failure(stage.name, int(stage_code), lines)
    return cast(StageOutcome, outcome)


def _failure(stage: str, code: int, lines: deque[str]) -> StageFailed:
    printed = tuple(line for line in lines if not line.startswith("::progress "))
    own = [line for line in printed if line.startswith(f"{stage}: ")]  # how `python -m tasks` says what is wrong
    return StageFailed(own[-1] if own else f"{stage}: {_ending(code)}", code, printed[-LAST_LINES:])


def _ending(code: int) -> str:
    """What an exit code says. A signal comes as a negative number, or above 128 through a shell that stays between."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return "was killed (SIGKILL), as the system does when memory runs out"
    if number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"failed with exit code {code}"


def _busy(stage: str) -> StageBusy:
    """The error, with the processes that DVC's list names."""
    from dvc.repo import Repo

    with Repo() as repo:
        (found,) = repo.stage.collect(stage)
        others = processes_on(Path(file.fs_path) for file in (*found.deps, *found.outs))
    who = ", ".join(f"PID {process}" for process in others) or "it holds DVC's lock"
    return StageBusy(f"{stage}: another DVC process works on its files ({who})")
