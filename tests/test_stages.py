"""DVC's side of the flow: order, freshness, and that no process and no work is lost when things go wrong."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from dvc.stage.exceptions import StageCmdFailedError
from toy_pipeline import STAGES, Toy, environment, wait_until

from decant import processes
from decant.errors import DecantError
from decant.paths import SOURCE_FINGERPRINT
from flows import reproduce, stages, watch
from flows.stages import OnLine, Slot, Stage, StageFailed, bring_up_to_date, pipeline

HOLD_LOCK = """
import sys, time
from dvc.repo import Repo
from dvc.repo import lock_repo
with Repo() as repo, lock_repo(repo):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def ignore(_line: str) -> None:
    pass


def run_all() -> dict[str, str]:
    return {stage.name: bring_up_to_date(stage, ignore) for stage in pipeline()}


def test_pipeline_is_what_dvc_yaml_says(in_toy: Toy) -> None:
    found = pipeline()
    assert [stage.name for stage in found] == list(STAGES)
    assert found[2] == Stage("purify_1", upstream=("ingest",), tags=("gpu",), retries=1, timeout=60)
    assert found[4].upstream == ("baseline", "train")
    assert [stage.name for stage in pipeline(["train"])] == [
        "ingest",
        "purify_1",
        "train",
    ]
    with pytest.raises(
        DecantError,
        match=r"no stage 'detect' in dvc\.yaml; there are: ingest, baseline",
    ):
        pipeline(["detect"])


def test_fresh_stages_are_left_alone_and_a_reverted_parameter_is_restored(
    in_toy_done: Toy,
) -> None:
    before = in_toy_done.lock.read_bytes()
    assert run_all() == dict.fromkeys(STAGES, "Unchanged")
    assert in_toy_done.lock.read_bytes() == before

    params = Path("params.yaml").read_text()
    changed = yaml.safe_load(params)
    changed["purify_1"]["kld_limit"] += 1
    Path("params.yaml").write_text(yaml.safe_dump(changed))
    # The toy's output is the same whatever the parameter, so what depends on it stays fresh.
    assert run_all() == dict.fromkeys(STAGES, "Unchanged") | {"purify_1": "Done"}
    Path("params.yaml").write_text(params)
    assert bring_up_to_date(Stage("purify_1"), ignore) == "Restored"
    assert in_toy_done.lock.read_bytes() == before


def test_failed_stage_says_why_and_leaves_the_lock_file(in_toy_done: Toy) -> None:
    before = in_toy_done.lock.read_bytes()
    in_toy_done.order("train", "exit 2")
    Path("work.py").write_text(Path("work.py").read_text() + "\n")
    with pytest.raises(StageFailed) as caught:
        bring_up_to_date(Stage("train"), ignore)
    assert (caught.value.code, str(caught.value)) == (2, "train: the input is bad")
    assert "first words" in caught.value.lines
    assert in_toy_done.lock.read_bytes() == before


def test_what_dvc_itself_cannot_do_is_told(in_toy_done: Toy) -> None:
    Path("work.py").unlink()
    with pytest.raises(StageFailed, match=r"train: .*work\.py") as caught:
        bring_up_to_date(Stage("train"), ignore)
    assert caught.value.code == 1


def test_a_stage_whose_command_cannot_start_has_failed(in_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/no/such/shell")
    with pytest.raises(StageFailed, match=r"ingest: .*/no/such/shell") as caught:
        bring_up_to_date(Stage("ingest"), ignore)
    assert caught.value.code == 1


def test_a_failure_before_any_command_has_an_exit_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def repo(**_options: object) -> None:
        raise StageCmdFailedError("work.py", 3)

    monkeypatch.setattr(reproduce, "Repo", repo)
    assert reproduce.reproduce("ingest", reproduce.Commands(), force=False) == ("Failed", 1)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # one stays between DVC and the stage, one does not
def test_killed_stage_leaves_the_lock_file_and_the_next_run_completes(
    in_toy: Toy, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    in_toy.order("ingest", "sleep 60")
    ingest = pipeline()[0]
    killer = threading.Thread(target=lambda: os.kill(in_toy.process_of("ingest"), signal.SIGKILL))
    killer.start()
    with pytest.raises(StageFailed, match=r"ingest: was killed \(SIGKILL\)"):
        bring_up_to_date(ingest, ignore)
    killer.join()
    assert not in_toy.lock.exists()
    in_toy.obey_no_order()
    assert bring_up_to_date(ingest, ignore) == "Done"
    assert stages.is_fresh("ingest")


@pytest.mark.parametrize("order", ["sleep 60", "stubborn 60"])
def test_timeout_ends_the_whole_process_group(in_toy: Toy, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    in_toy.order("ingest", order)
    before = in_toy.processes()
    with pytest.raises(StageFailed, match="ingest: ran past its timeout of 3 s and was stopped") as caught:
        bring_up_to_date(Stage("ingest", timeout=3), ignore)
    assert caught.value.state == "TimedOut"
    assert in_toy.processes() == before
    assert not Path("data/ingest").exists()  # it was stopped, it did not come to its end


def test_child_of_a_stage_neither_delays_nor_outlives_it(in_toy: Toy) -> None:
    in_toy.order("ingest", "spawn 600")  # it also holds the stage's output open
    before = in_toy.processes()
    assert bring_up_to_date(Stage("ingest", timeout=60), ignore) == "Done"
    assert in_toy.processes() == before


def test_lock_held_by_another_process_when_a_stage_ends_loses_nothing(
    in_toy: Toy,
) -> None:
    in_toy.order("ingest", "sleep 2")
    holders: list[subprocess.Popen[str]] = []

    def hold() -> None:
        in_toy.process_of("ingest")  # DVC lets go of its lock while the stage runs
        command = [sys.executable, "-c", HOLD_LOCK, "6"]  # DVC gives up after 3 s
        holders.append(
            subprocess.Popen(
                command,
                cwd=in_toy.root,
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    holding = threading.Thread(target=hold)
    holding.start()
    assert bring_up_to_date(pipeline()[0], ignore) == "Done"
    holding.join()
    assert holders[0].communicate()[0] == "held\n"
    assert stages.is_fresh("ingest")


def test_waits_while_another_dvc_process_works_on_the_stage(in_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "BUSY_PAUSE", 0.2)
    in_toy.order("ingest", "sleep 4")
    command = [sys.executable, "-m", "dvc", "repro", "ingest"]
    other = subprocess.Popen(command, cwd=in_toy.root, env=environment(), stdout=subprocess.DEVNULL)
    in_toy.process_of("ingest")
    lines: list[str] = []
    assert bring_up_to_date(Stage("ingest"), lines.append) == "Unchanged"
    assert other.wait() == 0
    assert lines == [f"ingest: another DVC process works on its files (PID {other.pid}); waiting for it"]


def test_changed_files_of_the_source_run_ingest_again(in_toy_done: Toy) -> None:
    from decant.data.sources import fingerprint

    photos = in_toy_done.root / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"1")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["ingest"]["source"] = str(photos)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    ingest = Stage("ingest")
    assert bring_up_to_date(ingest, ignore) == "Done"

    SOURCE_FINGERPRINT.parent.mkdir(parents=True)
    SOURCE_FINGERPRINT.write_text(fingerprint(str(photos)))  # as the real ingest does
    assert bring_up_to_date(ingest, ignore) == "Unchanged"
    (photos / "b.png").write_bytes(b"2")
    assert stages.is_fresh("ingest")  # for all that DVC knows
    assert bring_up_to_date(ingest, ignore) == "Done"
    shutil.rmtree(photos)  # an unplugged disk is no reason to lose what was ingested
    assert bring_up_to_date(ingest, ignore) == "Unchanged"


def test_group_is_ended_also_when_a_second_interrupt_cuts_the_wait_short(
    in_toy: Toy,
) -> None:
    in_toy.order("ingest", "stubborn 60")
    child = in_toy.start("run", "--no-server")
    pid = in_toy.process_of("ingest")
    for _ in range(2):
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.5)
    assert child.wait(timeout=60) == 130
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the stage to end")
    assert in_toy.processes() == [os.getpid()]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (["::progress 40.0", "a word"], [40.0, 100.0]),  # it ended before what it had planned for
        (["::progress 40.0", "::progress 100.0"], [40.0, 100.0]),
        (["a word"], []),
    ],
)
def test_a_stage_that_is_done_is_shown_as_whole(
    printed: list[str], shown: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_work(_stage: Stage, on_line: OnLine, _slot: Slot) -> str:
        for line in printed:
            on_line(line)
        return "Done"

    monkeypatch.setattr(watch, "bring_up_to_date", at_work)
    found: list[float] = []
    watch.watched(Stage("toy"), ignore, found.append)
    assert found == shown
