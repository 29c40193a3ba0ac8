"""`decant deploy`: registers the schedule of prefect.yaml with the Prefect server, for this workspace."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml

from decant.errors import DecantError
from flows import server


def main(_arguments: argparse.Namespace) -> int:
    """Registers the deployments, creating their work pools, and prints how to start a worker."""
    address = server.ensure_server(print)
    environment = {**os.environ, "DECANT_ROOT": str(Path.cwd())}
    deployments = read_deployments()
    for pool in dict.fromkeys(deployment["work_pool"]["name"] for deployment in deployments):
        if _prefect(environment, "work-pool", "inspect", pool).returncode:
            _must(_prefect(environment, "work-pool", "create", pool, "--type", "process"))
        print(f"work pool {pool}: {address.ui}/work-pools/work-pool/{pool}")
    _must(_prefect(environment, "--no-prompt", "deploy", "--all"))
    for deployment in deployments:
        crons = ", ".join(
            f"{schedule['cron']} {schedule.get('timezone', 'UTC')}" for schedule in deployment["schedules"]
        )
        print(f"deployment {deployment['name']}: {crons}; runs in {environment['DECANT_ROOT']}")
        print(f"  the process that does the work:  prefect worker start --pool {deployment['work_pool']['name']}")
        print(f"  a run right now:                 prefect deployment run clean/{deployment['name']}")
    return 0


def read_deployments() -> list[dict]:
    """The deployments of prefect.yaml. Raises DecantError where there is no such file."""
    path = Path("prefect.yaml")
    if not path.is_file():
        raise DecantError("prefect.yaml: no such file here; it says which runs are scheduled")
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"])


def _prefect(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefect", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise DecantError(f"prefect refused: {''.join(last)}")
