"""Workspaces: what `decant init` writes, what an upgrade keeps, and which stages a changed library makes stale."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_pipeline import ROOT, Toy

from decant import fingerprints
from decant.cli import main, status, workspace
from decant.errors import DecantError
from decant.summaries import Summary
from tasks import __main__ as runner

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def of_repository(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace, just created."""
    folder = tmp_path_factory.mktemp("template") / "space"
    assert main.main(["init", str(folder), "--source", "digits"]) == 0
    return folder


@pytest.fixture
def space(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of one's own, and the test itself in it."""
    folder = tmp_path / "space"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def room_of(dependency: str) -> str:
    """The library's part that a dependency of the repository's dvc.yaml lies in."""
    return dependency.split("/")[1].removesuffix(".py")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(capsys.readouterr())


# ---------------------------------------------------------------------------------------------------------------------
# init
# ---------------------------------------------------------------------------------------------------------------------


def test_a_workspace_holds_the_pipeline_and_asks_a_person_about_data_as_it_is(space: Path) -> None:
    for name in ("tasks/verify.py", "flows/clean.py", "prefect.toml", ".dvc/config", ".dvcignore", ".gitignore"):
        assert (space / name).read_text() == of_repository(name), name
    for name in ("data/inputs/decisions.csv", "data/inputs/affected.csv"):
        assert (space / name).read_text().splitlines()[0] == of_repository(name).splitlines()[0]
    params, demo = (
        yaml.safe_load(text) for text in ((space / "params.yaml").read_text(), of_repository("params.yaml"))
    )
    assert params["simulate"]["attacks"] == [] and params["verify"]["expert"] == "person"
    demo["simulate"]["attacks"], demo["verify"]["expert"] = [], "person"
    assert params == demo  # nothing else differs
    assert (space / ".git").is_dir() and (space / ".dvc").is_dir()
    assert not list(space.rglob("__pycache__")) and not (space / "decant").exists()


@pytest.mark.parametrize("stage", DVC)
def test_the_library_s_rooms_are_parameters_of_a_stage_and_all_else_is_the_repository_s(
    space: Path, stage: str
) -> None:
    laid, own = yaml.safe_load((space / "dvc.yaml").read_text())["stages"][stage], DVC[stage]
    rooms = {room_of(dep) for dep in own["deps"] if dep.startswith("decant/")}
    assert set(fingerprints.parts_used(laid)) == rooms and rooms
    assert laid["deps"] == [dep for dep in own["deps"] if not dep.startswith("decant/")]
    assert laid["params"][:-1] == own["params"]
    assert {key: laid[key] for key in laid if key not in ("deps", "params")} == {
        key: own[key] for key in own if key not in ("deps", "params")
    }


def test_links_of_the_pages_lead_somewhere(space: Path) -> None:
    pages = [space / "README.md", *(space / "docs").glob("*.md")]
    links = [page.parent / link for page in pages for link in re.findall(r"\]\(([^)#]+)", page.read_text())]
    assert len(links) > 2 and not [link for link in links if not link.exists()]


def test_a_relative_source_is_found_from_the_workspace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos: mine" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main.main(["init", "space", "--source", "photos: mine"]) == 0
    params = yaml.safe_load((tmp_path / "space/params.yaml").read_text())
    assert params["ingest"]["source"] == str(tmp_path / "photos: mine")
    assert told(capsys).splitlines()[-3:] == [f"  cd {tmp_path / 'space'}", "  decant run", "  decant report --open"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init"], "decant init FOLDER; or, in a workspace: decant init --upgrade"),
        (["init", "full"], "not empty (it holds mine.txt)"),
        (["init", "full/mine.txt"], "can't be a folder"),
        (["init", "new", "--source", "/no/such/folder"], "/no/such/folder: no such file or folder"),
        (["init", "--upgrade"], "not a workspace, so there is nothing to upgrade; decant init FOLDER makes one"),
        (["init", "full", "--upgrade"], "not a workspace, so there is nothing to upgrade"),
    ],
)
def test_init_refuses_in_one_line_and_makes_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main.main(words) == 2
    found = capsys.readouterr().err
    assert message in found and len(found.splitlines()) == 1
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["full", "full/mine.txt"]


def test_inside_a_git_repository_no_second_one_is_made(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert main.main(["init", str(tmp_path / "space")]) == 0
    assert not (tmp_path / "space/.git").exists() and (tmp_path / "space/.dvc/config").is_file()


def test_without_git_a_workspace_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.main(["init", str(tmp_path / "space")]) == 0
    assert told(capsys).splitlines()[0].startswith("git is not installed")
    assert not (tmp_path / "space/.git").exists()
    monkeypatch.chdir(tmp_path / "space")
    assert {found.state for found in status.statuses()} == {"stale"}  # DVC takes it


# ---------------------------------------------------------------------------------------------------------------------
# init --upgrade
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of a decant that has changed two files, dropped one and gained one."""
    files = workspace.pipeline_files()
    files["flows/gpu.py"] += "# newer\n"
    files["tasks/export.py"] += "# newer\n"
    del files["flows/watch.py"]
    files["tasks/extra.py"] = "# new\n"
    monkeypatch.setattr(workspace, "pipeline_files", lambda: files)
    return files


def test_an_upgrade_brings_what_is_newer_and_keeps_what_was_changed(
    space: Path, newer: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {
        name: (space / name).read_text() + "# mine\n" for name in ("tasks/export.py", "prefect.yaml", "params.yaml")
    }
    for name, text in mine.items():
        (space / name).write_text(text)
    assert main.main(["init", "--upgrade"]) == 0
    lines = dict(line.split(": ", 1) for line in told(capsys).splitlines() if ": " in line)
    assert lines["flows/gpu.py"] == "updated" and (space / "flows/gpu.py").read_text().endswith("# newer\n")
    assert lines["tasks/extra.py"] == "added" and (space / "tasks/extra.py").read_text() == "# new\n"
    assert lines["flows/watch.py"].startswith("removed") and not (space / "flows/watch.py").exists()
    assert lines["tasks/export.py"].startswith("kept") and "suffix .new" in lines["tasks/export.py"]
    assert (space / "tasks/export.py.new").read_text() == newer["tasks/export.py"]
    assert lines["prefect.yaml"].startswith("kept") and not (space / "prefect.yaml.new").exists()
    assert "tasks/verify.py" not in lines
    for name, text in mine.items():
        assert (space / name).read_text() == text, name


def test_a_second_upgrade_has_nothing_newer_to_tell(
    space: Path, newer: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (space / "tasks/export.py").write_text("# mine\n")
    assert main.main(["init", "--upgrade"]) == 0
    (space / "tasks/export.py.new").unlink()
    (space / "flows/gpu.py").unlink()
    told(capsys)
    assert main.main(["init", "--upgrade"]) == 0
    lines = told(capsys).splitlines()
    assert lines[:-1] == ["flows/gpu.py: added", "tasks/export.py: kept: you changed it, and there is no newer version"]
    assert not (space / "tasks/export.py.new").exists()


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["init", "."], "decant init --upgrade"),
        (["init", ".", "--source", "digits"], "decant run --set ingest.source=digits"),  # it has its source
        (["init", "--upgrade", "--source", "digits"], "decant run --set ingest.source=digits"),
    ],
)
def test_init_of_a_workspace_that_is_there_changes_nothing_and_names_the_way(
    words: list[str], way: str, space: Path, newer: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words) == 2
    lines = told(capsys).splitlines()
    assert len(lines) == 1 and "already a workspace" in lines[0] and lines[0].endswith(way)
    assert not (space / "tasks/extra.py").exists()


def test_an_upgrade_names_the_stages_of_a_kept_pipeline_that_lack_a_part_of_the_library(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, files = space / "dvc.yaml", workspace.pipeline_files()
    path.write_text(path.read_text() + "# mine\n")
    pipeline: dict[str, Any] = yaml.safe_load(files["dvc.yaml"])
    for stage, keys in {"verify": ["library.web"], "ingest": ["library.web", "library.serve"]}.items():
        pipeline["stages"][stage]["params"].append({"workspace.yaml": keys})
    files["dvc.yaml"] = yaml.safe_dump(pipeline)
    monkeypatch.setattr(workspace, "pipeline_files", lambda: files)
    assert main.main(["init", "--upgrade"]) == 0
    lines = [line for line in told(capsys).splitlines() if "lacks" in line]
    assert lines == [
        "dvc.yaml: stage ingest lacks library.serve, library.web: add them, or take dvc.yaml.new",
        "dvc.yaml: stage verify lacks library.web: add it, or take dvc.yaml.new",
    ]
    (space / "dvc.yaml.new").replace(path)
    assert main.main(["init", "--upgrade"]) == 0
    assert "lacks" not in told(capsys)


# ---------------------------------------------------------------------------------------------------------------------
# fingerprints
# ---------------------------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    room = tmp_path / "room"
    (room / "inner").mkdir(parents=True)
    (room / "__init__.py").write_text("")
    (room / "inner/a.py").write_text("1")
    first = fingerprints.fingerprint(room)
    (room / "__pycache__").mkdir()
    (room / "__pycache__/a.pyc").write_text("compiled")
    moved = tmp_path / "elsewhere" / "room"
    shutil.copytree(room, moved)
    assert fingerprints.fingerprint(room) == fingerprints.fingerprint(moved) == first
    (moved / "inner/a.py").write_text("2")
    assert fingerprints.fingerprint(moved) != first
    (room / "inner/a.py").rename(room / "inner/b.py")
    assert fingerprints.fingerprint(room) != first


def change_room(monkeypatch: pytest.MonkeyPatch, *rooms: str) -> None:
    """As if another decant were installed, in which these rooms are different."""
    found = fingerprints.fingerprints() | dict.fromkeys(rooms, "changed")
    monkeypatch.setattr(fingerprints, "fingerprints", lambda: found)
    monkeypatch.setattr(workspace, "fingerprints", lambda: found)


def users_of(room: str) -> set[str]:
    """From the repository's dvc.yaml: an independent account of who uses a room."""
    return {
        name for name, stage in DVC.items() if any(room_of(dep) == room for dep in stage["deps"] if "decant/" in dep)
    }


@pytest.fixture
def finished(space: Path) -> Path:
    """A workspace whose stages have all run, for DVC: each stage's command only makes its outputs."""
    path = space / "dvc.yaml"
    pipeline: dict[str, Any] = yaml.safe_load(path.read_text())
    for name, stage in pipeline["stages"].items():
        wanted = {dep for other in DVC.values() for dep in other["deps"] if dep.startswith(f"data/{name}/")}
        files = sorted(wanted | {f"data/{name}/summary.json"}) + ["metrics.json"] * ("metrics" in stage)
        stage["cmd"] = f"mkdir -p data/{name} && touch {' '.join(files)}"
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    Toy(space).dvc("repro", "-q").check_returncode()
    return space


def stale() -> dict[str, list[str]]:
    return {found.stage: found.why for found in status.statuses() if found.state == "stale"}


def test_exactly_the_stages_that_use_a_changed_room_are_stale(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale() == {}
    change_room(monkeypatch, "purify", "serve")
    expected = {stage: ["code changed: decant/purify"] for stage in users_of("purify")}
    assert stale() == expected and 1 < len(expected) < len(DVC)
    assert main.main(["init", "--upgrade"]) == 0
    assert stale() == expected  # for DVC, too: the parameters of these stages have changed
    listed = yaml.safe_load(Toy(finished).dvc("status", "--json").stdout)
    assert {name for name, why in listed.items() if "workspace.yaml" in str(why)} == set(expected)


def test_a_stage_runs_only_with_the_code_that_is_recorded(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        runner, "run_stage", lambda run, _options: ran.append(run.__module__) or Summary(rows_in=0, rows_out=0, note="")
    )
    change_room(monkeypatch, "influence")
    for name, stage in DVC.items():
        refused = runner.main(stage["cmd"].split()[3:]) == 2
        assert refused == ("decant init --upgrade" in told(capsys)) == (name in users_of("influence")), name
    assert set(ran) == {f"tasks.{name}" for name in DVC if name not in users_of("influence")}
    assert main.main(["init", "--upgrade"]) == 0
    assert runner.main(DVC["detect"]["cmd"].split()[3:]) == 0


@pytest.mark.parametrize("command", [["run", "--no-server"], ["run"]])
def test_a_run_with_other_code_is_refused_before_any_work(
    command: list[str], space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_room(monkeypatch, "models")
    assert main.main(command) == 2
    assert "decant init --upgrade" in told(capsys) and not (space / "dvc.lock").exists()


def test_a_scheduled_run_with_other_code_fails_before_any_work(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.clean import clean  # here: it loads Prefect

    change_room(monkeypatch, "models")
    state = clean.fn()
    assert state.is_failed() and "decant init --upgrade" in str(state.message)


def test_status_says_first_that_the_library_has_changed(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_room(monkeypatch, "models")
    assert main.main(["status"]) == 0
    assert "decant init --upgrade" in told(capsys).splitlines()[0]


def test_rooms_that_no_stage_uses_hold_up_nobody(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_room(monkeypatch, "serve", "review", "cli")
    fingerprints.check()


def test_a_checkout_has_no_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    change_room(monkeypatch, "models")
    assert fingerprints.outdated() == {}


def test_an_unreadable_record_is_one_line(space: Path) -> None:
    (space / "workspace.yaml").write_text("library: {")
    with pytest.raises(DecantError, match=r"workspace\.yaml: can't be read"):
        fingerprints.check()
