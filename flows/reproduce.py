"""``python -m flows.reproduce STAGE [--force]``: DVC brings one stage up to date, in a process of its own.

What `dvc repro --single-item STAGE` does, through DVC's Python API, because the command reports its result only in
sentences. Here the last line of output says it for a program: ``::ended OUTCOME EXIT-CODE``, where OUTCOME is

    Unchanged   DVC had nothing to do
    Restored    DVC had the outputs of an earlier run and started no command
    Done        the stage's command has run
    Failed      the command ended with this exit code (negative: a signal), or DVC could not do its part
    Busy        another DVC process works on the stage's files, or holds DVC's lock

DVC's lock is waited for: without that, a finished stage is lost when another process holds the lock for 3 s.
"""

import argparse
import logging
import subprocess
import sys
from typing import Any

from dvc.env import DVC_STAGE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError

commands: list["StageCommand"] = []
"""The stage's commands that DVC has started."""


class StageCommand(subprocess.Popen[Any]):
    """Remembers the processes that DVC starts for a stage: its API tells neither of them nor of their exit codes."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        if DVC_STAGE in (options.get("env") or {}):
            commands.append(self)


def reproduce(stage: str, *, force: bool) -> tuple[str, int]:
    """(outcome, exit code). What is wrong with DVC's own part is printed."""
    try:
        with Repo(_wait_for_lock=True) as repo:
            ran = repo.reproduce(targets=[stage], single_item=True, force=force)
    except DvcException as error:
        cause = error.__cause__ or error
        if isinstance(cause, LockError):
            return "Busy", 1
        if isinstance(cause, StageCmdFailedError):
            return "Failed", commands[-1].returncode
        print(f"{stage}: {' '.join(str(cause).split())}", file=sys.stderr)
        return "Failed", 1
    if commands:
        return "Done", 0
    return ("Restored" if ran else "Unchanged"), 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description="Bring one stage up to date.")
    parser.add_argument("stage")
    parser.add_argument("--force", action="store_true", help="run it even if DVC knows of no change")
    arguments = parser.parse_args()
    logging.getLogger("dvc").setLevel(logging.WARNING)  # its advice on Git and remotes helps nobody here
    subprocess.Popen = StageCommand  # type: ignore[misc]
    outcome, code = reproduce(arguments.stage, force=arguments.force)
    print(f"\n::ended {outcome} {code}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
