"""DVC's list of running stages, as we read it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from decant import stage_locks
from decant.errors import StageError
from decant.stage_locks import is_being_written, processes_on


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that, by DVC's list, writes data/verify and reads data/train/model."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(["sleep", "60"])
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    entry = {"pid": process.pid, "cmd": "dvc repro"}
    listed = {"write": {str(tmp_path / "data/verify"): entry}, "read": {str(tmp_path / "data/train/model"): [entry]}}
    stage_locks.LOCKS.write_text(json.dumps(listed))
    yield process
    process.kill()
    process.wait()


def test_a_folder_is_being_written_while_its_writer_lives(sleeper: subprocess.Popen[bytes]) -> None:
    assert is_being_written(Path("data/verify"))
    assert not is_being_written(Path("data/train"))
    sleeper.kill()
    sleeper.wait()
    assert not is_being_written(Path("data/verify")), "a stage that was killed stays in DVC's list"


@pytest.mark.parametrize(
    ("file", "is_found"),
    [
        ("data/verify", True),
        ("data/verify/queue.csv", True),
        ("data/train", True),
        ("data", True),
        ("data/train/other", False),
        ("data/verify_2", False),
    ],
)
def test_readers_and_writers_of_a_file_and_of_folders_around_it(
    sleeper: subprocess.Popen[bytes], file: str, is_found: bool
) -> None:
    assert processes_on([Path(file)]) == [sleeper.pid] * is_found


def test_without_a_list_nothing_runs_and_a_damaged_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_locks, "ATTEMPTS", 2)
    assert processes_on([Path("data")]) == []
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    stage_locks.LOCKS.write_text('{"write": {')
    with pytest.raises(StageError, match="rwlock: DVC's list of running stages is damaged; delete it when no stage"):
        processes_on([Path("data")])
