"""`python -m tasks`: one line for what a user can mend, nothing partly written, records kept apart from outputs."""

from pathlib import Path
from typing import Any

import pytest
from samples import digits

import tasks.simulate
from decant.data.tables import read_images, read_truth, write_images
from decant.files import read_json
from decant.runtime import Progress
from decant.summaries import SimulateSummary
from tasks.__main__ import main, stage_names


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train, test = digits()
    write_images(tmp_path / "train.parquet", train)
    write_images(tmp_path / "test.parquet", test)
    (tmp_path / "params.yaml").write_text("simulate:\n  attacks: [{name: label_noise, rate: 0.1}]\n")
    return tmp_path


SIMULATE = ["simulate", "--train", "train.parquet", "--test", "test.parquet", "--out", "data/simulate"]


def test_a_stage_leaves_its_folder_its_summary_and_its_record(workspace: Path) -> None:
    assert main(SIMULATE) == 0
    out = workspace / "data/simulate"
    assert SimulateSummary.read(out).attacks == {"label_noise": round(0.1 * len(digits()[0]))}
    assert len(read_truth(out / "truth.parquet")) == round(0.1 * len(digits()[0]))
    record = read_json(workspace / "data/runs/simulate.json")
    assert record["stage"] == "simulate" and record["seconds"] > 0
    assert (workspace / "data/runs/runs.js").read_text().startswith("window.decantRuns = {")


def test_two_runs_write_the_same_bytes(workspace: Path) -> None:
    files = ("train.parquet", "truth.parquet", "affected.parquet", "triggered.parquet", "summary.json")
    runs = []
    for _ in range(2):
        assert main(SIMULATE) == 0
        runs.append([(workspace / "data/simulate" / name).read_bytes() for name in files])
    assert runs[0] == runs[1]


def test_a_failing_stage_leaves_nothing_and_what_was_there(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(SIMULATE) == 0
    before = sorted(path.name for path in (workspace / "data").iterdir())

    def failing(*, out: Path, **_: Any) -> SimulateSummary:
        (out / "half.parquet").write_text("half")
        raise RuntimeError("in the middle")

    failing.__signature__ = __import__("inspect").signature(tasks.simulate.run)  # type: ignore[attr-defined]
    monkeypatch.setattr(tasks.simulate, "run", failing)
    with pytest.raises(RuntimeError):
        main(SIMULATE)
    assert sorted(path.name for path in (workspace / "data").iterdir()) == before
    assert len(read_images(workspace / "data/simulate/train.parquet")) == len(digits()[0])


def test_bad_parameters_are_one_line_and_exit_code_2(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "params.yaml").write_text("simulate:\n  atacks: []\n")
    assert main(SIMULATE) == 2
    assert capsys.readouterr().err == (
        "simulate: simulate.atacks: unknown parameter; known: attacks, affected_points. Did you mean 'attacks'?\n"
    )
    assert not (workspace / "data/simulate").exists()


def test_a_missing_input_says_which_and_what_to_do(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "train.parquet").unlink()
    assert main(SIMULATE) == 2
    assert "train.parquet: no such file; run the stage that writes it first" in capsys.readouterr().err


def test_unwritable_output_is_one_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "data").write_text("a file where the folder should be")
    assert main(SIMULATE) == 2
    assert "can't write there" in capsys.readouterr().err


def test_without_arguments_the_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    printed = capsys.readouterr().out
    assert all(name in printed for name in stage_names())


def test_progress_is_a_line_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("stage", total=4)
    progress.MIN_SECONDS = 0
    for _ in range(4):
        progress.step()
    assert capsys.readouterr().out.splitlines() == [f"::progress {p}" for p in ("25.0", "50.0", "75.0", "100.0")]
