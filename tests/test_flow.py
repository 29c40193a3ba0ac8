"""The flow, in reality: a Prefect server, `decant run`, and what is left when a run ends badly."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from toy_pipeline import ROOT, STAGES, Toy, environment, wait_until

from flows import server

METRICS = {
    "as_received": {"accuracy": 0.71, "poison_success": 0.93, "rows": 1437},
    "cleaned": {"accuracy": 0.962, "rows": 1290},
    "verify": {"flagged": 107},
}


def api(server: str, path: str, query: dict[str, Any]) -> Any:
    """Asks as Prefect's own client does: again, when the server's database was busy with another request (503)."""
    request = urllib.request.Request(
        f"{server}/api/{path}", data=json.dumps(query).encode(), headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 60
    while True:
        try:
            with opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def newest_run(server: str) -> dict[str, Any]:
    """The flow run that began last; those that a schedule has planned have not begun."""
    query = {"limit": 1, "sort": "START_TIME_DESC", "flow_runs": {"start_time": {"is_null_": False}}}
    found: dict[str, Any] = api(server, "flow_runs/filter", query)[0]
    return found


def last_task_runs(server: str) -> dict[str, dict[str, Any]]:
    """The task runs of the newest flow run, by name."""
    query = {"task_runs": {"flow_run_id": {"any_": [newest_run(server)["id"]]}}}
    return {run["name"]: run for run in api(server, "task_runs/filter", query)}


def test_flow_does_the_work_of_dvc_repro_and_shows_it(prefect_server: str, toy: Toy, toy_done: Toy) -> None:
    (toy.root / "metrics.json").write_text(json.dumps(METRICS))
    cold = toy.decant("run")
    assert cold.returncode == 0, cold.stdout + cold.stderr
    assert toy.lock.read_bytes() == toy_done.lock.read_bytes()  # toy_done was made by `dvc repro`
    assert "after Δ-Influence and unlearning" in cold.stdout and "96.2 %" in cold.stdout

    assert newest_run(prefect_server)["name"] == "digits, seed 0"  # from params.yaml
    runs = last_task_runs(prefect_server)
    assert {name: run["state_name"] for name, run in runs.items()} == dict.fromkeys(STAGES, "Done")
    assert runs["purify_1"]["tags"] == ["gpu"]
    upstream = {parent["id"] for parents in runs["evaluate"]["task_inputs"].values() for parent in parents}
    assert upstream == {runs["baseline"]["id"], runs["train"]["id"]}

    artifacts = {found["key"]: found for found in api(prefect_server, "artifacts/latest/filter", {})}
    assert artifacts["progress-purify-1"]["data"] == 100.0
    assert "| after Δ-Influence and unlearning | 96.2 % | – | 1,290 |" in artifacts["result"]["data"]
    query = {"logs": {"task_run_id": {"any_": [runs["train"]["id"]]}}}
    wait_until(  # Prefect sends logs in batches
        lambda: "train: wrote one file" in [log["message"] for log in api(prefect_server, "logs/filter", query)],
        "the stage's own line to reach the log",
    )


def test_run_after_dvc_repro_finds_every_stage_unchanged(prefect_server: str, toy_done: Toy) -> None:
    before = toy_done.lock.read_bytes()
    assert toy_done.decant("run").returncode == 0
    assert {name: run["state_name"] for name, run in last_task_runs(prefect_server).items()} == dict.fromkeys(
        STAGES, "Unchanged"
    )
    assert toy_done.lock.read_bytes() == before


def test_failed_stage_stops_only_what_needs_it_and_the_exit_code_says_so(prefect_server: str, toy_done: Toy) -> None:
    touch_code(toy_done)
    toy_done.order("purify_1", "exit 3")
    failed = toy_done.decant("run")
    assert failed.returncode == 1
    assert "purify_1: the input is bad" in failed.stdout and "  first words" in failed.stdout
    assert "not run: train, evaluate" in failed.stdout
    assert {name: run["state_name"] for name, run in last_task_runs(prefect_server).items()} == {
        "ingest": "Done", "baseline": "Done", "purify_1": "Failed", "train": "NotReady", "evaluate": "NotReady",
    }  # fmt: skip
    assert last_task_runs(prefect_server)["purify_1"]["run_count"] == 2  # dvc.yaml grants it one retry


def test_bad_input_is_one_line_without_a_retry(prefect_server: str, toy_done: Toy) -> None:
    touch_code(toy_done)
    toy_done.order("purify_1", "exit 2")
    failed = toy_done.decant("run", "purify_1")
    assert failed.returncode == 2
    assert failed.stdout.splitlines()[-1] == "purify_1: the input is bad"
    assert "first words" not in failed.stdout
    assert last_task_runs(prefect_server)["purify_1"]["run_count"] == 1
    assert newest_run(prefect_server)["state"]["message"] == "purify_1: the input is bad"


def touch_code(toy: Toy) -> None:
    code = toy.root / "work.py"
    code.write_text(code.read_text() + "\n")


def test_terminated_flow_leaves_no_process_behind(prefect_server: str, toy: Toy) -> None:
    toy.order("ingest", "sleep 600")
    flow = toy.start("run")
    pid = toy.process_of("ingest")
    flow.send_signal(signal.SIGTERM)  # what Prefect's cancel sends
    assert flow.wait(timeout=60) != 0
    assert not Path(f"/proc/{pid}").exists()
    assert toy.processes() == []
    assert not toy.lock.exists()


def test_terminated_flow_does_not_wait_for_a_server_that_is_silent(prefect_server: str, toy: Toy) -> None:
    toy.order("baseline", "sleep 120")
    server_process = int((server.home() / "server.pid").read_text())
    flow = toy.start("run")
    toy.process_of("baseline")
    os.kill(server_process, signal.SIGSTOP)
    try:
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(timeout=60) == 128 + signal.SIGTERM  # Prefect alone would try for six minutes
    finally:
        os.kill(server_process, signal.SIGCONT)
    assert toy.processes() == []


def test_gpu_works_on_one_stage_at_a_time_across_flow_runs(
    prefect_server: str, toy_done: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECANT_DEVICE", "cuda")  # the toy's stages only say that they would use it
    second = Toy(tmp_path / "second")
    shutil.copytree(toy_done.root, second.root, symlinks=True)
    toys = (toy_done, second)
    for each in toys:
        (each.root / "data/baseline").unlink()
        shutil.rmtree(each.root / ".dvc/cache")
        each.order("baseline", "sleep 5")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda each: each.decant("run", "baseline"), toys))
    assert [each.returncode for each in done] == [0, 0], done
    spans = sorted(
        ((each.root / "started/baseline").stat().st_mtime, (each.root / "data/baseline").stat().st_mtime)
        for each in toys
    )
    assert spans[0][1] <= spans[1][0], spans


def test_deployment_is_scheduled(prefect_server: str, toy_done: Toy) -> None:
    """With SQLAlchemy 2.1 all else works, and the scheduler silently schedules nothing."""
    shutil.copy(ROOT / "prefect.yaml", toy_done.root)
    deployed = toy_done.decant("deploy")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "prefect worker start --pool decant" in deployed.stdout
    (deployment,) = api(prefect_server, "deployments/filter", {})
    assert deployment["entrypoint"] == "flows.clean.clean"
    assert deployment["pull_steps"][0]["prefect.deployments.steps.set_working_directory"] == {
        "directory": str(toy_done.root)
    }
    assert deployment["global_concurrency_limit"]["limit"] == 1
    query = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_until(lambda: bool(api(prefect_server, "flow_runs/filter", query)), "a scheduled run", patience=90)


@pytest.mark.slow
def test_a_worker_runs_the_flow_of_the_workspace_whatever_folder_it_was_started_in(
    prefect_server: str, toy_done: Toy, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "prefect.yaml", toy_done.root)
    shutil.copytree(ROOT / "flows", toy_done.root / "flows")
    with (toy_done.root / "flows/__init__.py").open("a") as package:
        package.write("import pathlib\npathlib.Path('imported').write_text(__file__)\n")
    toy_done.decant("deploy").check_returncode()
    toy_done.python("-m", "prefect", "deployment", "run", "clean/nightly").check_returncode()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "decant"]
    worker = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    states = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
    ended = {"flow_runs": {"deployment_id": {"is_null_": False}, "state": states}}
    try:
        wait_until(
            lambda: bool(api(prefect_server, "flow_runs/filter", ended)), "the worker's run to end", patience=300
        )
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # the process of its run, too, which holds the pipe open
        said = worker.communicate(timeout=60)[0].decode()
    (run,) = api(prefect_server, "flow_runs/filter", ended)
    assert (run["state_type"], run["state"]["message"]) == ("COMPLETED", "5 Unchanged"), said
    assert (toy_done.root / "imported").read_text() == str(toy_done.root / "flows/__init__.py")
