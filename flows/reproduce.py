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

import dvc.stage.run
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError


class Commands:
    """Stands in for `subprocess` in DVC's stage runner and remembers the commands that it starts for a stage.

    DVC's API tells neither of them nor of their exit codes.
    """

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[Any]] = []

    def Popen(self, *arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(*arguments, **options)
        self.started.append(process)
        return process

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def reproduce(stage: str, commands: Commands, *, force: bool) -> tuple[str, int]:
    """(outcome, exit code). What is wrong with DVC's own part is printed."""
    try:
        with Repo(_wait_for_lock=True) as repo:
            ran = repo.reproduce(targets=[stage], single_item=True, force=force)
    except DvcException as error:
        cause = error.__cause__ or error
        if isinstance(cause, LockError):
            return "Busy", 1
        if isinstance(cause, StageCmdFailedError) and commands.started:
            return "Failed", commands.started[-1].returncode
        print(f"{stage}: {' '.join(str(cause).split())}", file=sys.stderr)
        return "Failed", 1
    if commands.started:
        return "Done", 0
    return ("Restored" if ran else "Unchanged"), 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description="Bring one stage up to date.")
    parser.add_argument("stage")
    parser.add_argument("--force", action="store_true", help="run it even if DVC knows of no change")
    arguments = parser.parse_args()
    logging.getLogger("dvc").setLevel(logging.WARNING)  # its advice on Git and remotes helps nobody here
    commands = Commands()
    dvc.stage.run.subprocess = commands
    outcome, code = reproduce(arguments.stage, commands, force=arguments.force)
    print(f"\n::ended {outcome} {code}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
