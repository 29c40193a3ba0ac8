"""The command line: its texts, exit codes, `--set`, status, explain and report."""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from toy_pipeline import ROOT, STAGES, Toy, environment

from decant import params
from decant.cli import explain, main, run, status, terminal
from decant.data.images import DatasetInfo, Images
from decant.data.tables import write_images, write_places, write_truth, write_verdicts
from decant.errors import DecantError
from decant.files import write_json
from decant.report import table
from decant.steps import STEPS


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from decant.cli import main\n"
        "try: main.main(['run', '--help'])\n"
        "except SystemExit: print('loaded:', {'prefect', 'dvc', 'torch', 'pandas', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: set()"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_has_a_help_text_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    assert f"decant {name}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], ". Did you mean 'run'?"),
        (["statsu"], ". Did you mean 'status'?"),
        (["frobnicate"], "no command 'frobnicate'; known: init, run, "),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["explain"], "the following arguments are required: ID"),
        (["explain", "seven"], "invalid int value: 'seven'"),
    ],
)
def test_wrong_words_get_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_outside_of_a_workspace_says_so_and_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["status"]) == 2
    told = capsys.readouterr().err
    assert "no dvc.yaml here or above" in told and "decant init FOLDER" in told


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ended.value.code == 0 and capsys.readouterr().out == f"decant {project['version']}\n"


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("dvc.repo", "pip install 'decant[pipeline]'"), ("prefect", "decant[pipeline]"), ("flows.stages", "decant init")],
)
def test_what_a_command_cannot_import_is_one_line(
    missing: str, advice: str, in_toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_arguments: object) -> int:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setitem(sys.modules, "decant.cli.status", SimpleNamespace(main=command))
    assert main.main(["status"]) == 2
    told = capsys.readouterr().err
    assert advice in told and len(told.splitlines()) == 1


def test_a_bug_s_missing_module_is_a_traceback(in_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_arguments: object) -> int:
        raise ModuleNotFoundError("No module named 'decant.nonsense'", name="decant.nonsense")

    monkeypatch.setitem(sys.modules, "decant.cli.status", SimpleNamespace(main=command))
    with pytest.raises(ModuleNotFoundError):
        main.main(["status"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "/photos",
            "not a stage; to clean this data: decant run --set ingest.source=/photos --set 'simulate.attacks=[]'",
        ),
        ("torchvision:MNIST", "decant run --set ingest.source=torchvision:MNIST"),
        ("evalute", ". Did you mean 'evaluate'?"),
    ],
)
def test_run_says_what_to_type_in_the_place_of_a_word_that_is_no_stage(
    word: str, message: str, in_toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (in_toy.root / "params.yaml").read_bytes()
    assert main.main(["run", "--no-server", "--set", "train.epochs=3", word]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert (in_toy.root / "params.yaml").read_bytes() == before and not in_toy.lock.exists()


# ---------------------------------------------------------------------------------------------------------------------
# --set
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def params_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own params.yaml, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def changed_lines(path: Path) -> list[str]:
    before = (ROOT / "params.yaml").read_text().splitlines()
    return [line for line in path.read_text().splitlines() if line not in before]


def test_set_changes_that_line_and_no_other(params_file: Path) -> None:
    count = len(params_file.read_text().splitlines())
    params.edit_file(["train.epochs=11", "verify.threshold=0.25", "ingest.limit=600", "train.lr=3e-3"])
    assert changed_lines(params_file) == ["  limit: 600", "  threshold: 0.25", "  epochs: 11", "  lr: 0.003"]
    assert len(params_file.read_text().splitlines()) == count


def test_set_takes_lists_and_their_entries(params_file: Path) -> None:
    params.edit_file(["simulate.attacks.1.rate=0.11"])
    (line,) = changed_lines(params_file)
    assert line.strip().startswith("- {name: label_noise, rate: 0.11")
    params.edit_file(["simulate.attacks=[]", "ingest.limit=null"])
    assert "  attacks: []" in params_file.read_text() and "  limit: null" in params_file.read_text()
    assert params_file.read_text().startswith("# What each stage is told.")  # comments stay


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown parameter; known: network"),
        ("train.epoch=3", ". Did you mean 'epochs'?"),
        ("trian.epochs=3", "unknown block 'trian'"),
        ("trian.epochs=3", ". Did you mean 'train'?"),
        ("epochs=3", ". Did you mean train.epochs or purify_1.epochs or purify_2.epochs?"),
        ("train.epochs=many", "train.epochs: whole number (at least 1) expected, 'many' found"),
        ("train.epochs", "block.key=value expected"),
        ("train=3", "train: a block of parameters expected"),
        ("seed.x=3", "holds a value, not a block"),
        ("simulate.attacks.9.rate=0", "9: an entry from 0 to"),
        ("simulate.attacks=[{name: nonsense}]", "simulate.attacks[0].name: one of"),
        ("ingest.source=[", "the value is not YAML"),
        ("ingest.source=/no/such/folder", "/no/such/folder: no such file or folder; ingest.source takes"),
        ("ingest.source=digit", "unknown source and no such folder; known: digits"),
    ],
)
def test_refused_set_writes_nothing(params_file: Path, assignment: str, message: str) -> None:
    before = params_file.read_bytes()
    with pytest.raises(DecantError) as refused:
        params.edit_file(["seed=7", assignment])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert params_file.read_bytes() == before


def test_poison_planted_into_own_data_is_told(params_file: Path, tmp_path: Path) -> None:
    assert params.planted_in_own_data() == []  # the demo's digits
    params_file.write_text(params_file.read_text().replace("source: digits", f"source: {tmp_path}"))
    assert params.planted_in_own_data() == ["badnet", "label_noise", "lsp"]
    params.edit_file(["simulate.attacks=[]"])
    assert params.planted_in_own_data() == []


def test_own_data_needs_a_word_on_the_demo_s_poison(params_file: Path, tmp_path: Path) -> None:
    before, own = params_file.read_bytes(), f"ingest.source={tmp_path}"
    with pytest.raises(DecantError) as refused:
        params.edit_file([own, "train.epochs=3"])
    for choice in ("--set 'simulate.attacks=[]'", "--set 'simulate.attacks=[{name: badnet}]'"):
        assert choice in str(refused.value)
    assert "\n" not in str(refused.value) and params_file.read_bytes() == before
    params.edit_file([own, "simulate.attacks=[{name: label_noise}]"])  # an experiment that was asked for
    assert params.planted_in_own_data() == ["label_noise"]
    params.edit_file(["simulate.attacks=[]"])
    params.edit_file([own])  # nothing is planted, so nothing need be said
    assert params.planted_in_own_data() == []


def test_refused_set_ends_run_with_exit_code_2_before_anything_starts(toy: Toy) -> None:
    done = toy.decant("run", "--set", "verify.treshold=0.9")
    assert done.returncode == 2
    assert done.stderr.startswith("decant: verify.treshold: unknown parameter; known: ")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout and not toy.lock.exists()


def test_run_without_a_server_does_the_same_work(toy_done: Toy) -> None:
    before = toy_done.lock.read_bytes()
    done = toy_done.decant("run", "--no-server", "--set", "train.epochs=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 of 5 stages ran")
    assert "epochs: 3" in (toy_done.root / "params.yaml").read_text()
    done = toy_done.decant("run", "--no-server", "--set", "train.epochs=10")
    assert "ingest    Unchanged" in done.stdout and "train     Restored" in done.stdout
    assert toy_done.lock.read_bytes() == before


BUSY = httpx.Response(503, request=httpx.Request("POST", "http://127.0.0.1"))


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.HTTPStatusError("busy", request=BUSY.request, response=BUSY)]
)
def test_lost_server_is_one_sentence_not_a_traceback(error: httpx.HTTPError, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(targets: list[str] | None, return_state: bool) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "flows.clean", SimpleNamespace(clean=lost))
    assert "finished stages are kept" in run.in_prefect(None)


# ---------------------------------------------------------------------------------------------------------------------
# status
# ---------------------------------------------------------------------------------------------------------------------


def why(toy: Toy) -> dict[str, list[str]]:
    return {found.stage: [found.state, *found.why] for found in status.statuses()}


def test_status_says_in_words_why_a_stage_is_stale(in_toy_done: Toy) -> None:
    assert why(in_toy_done) == {stage: ["fresh"] for stage in STAGES}
    params.edit_file(["train.epochs=12", "train.lr=0.01"])
    (in_toy_done.root / "data/evaluate").unlink()
    assert why(in_toy_done) == {
        "ingest": ["fresh"],
        "baseline": ["stale", "train.epochs: 10 -> 12", "train.lr: 0.05 -> 0.01"],
        "purify_1": ["fresh"],
        "train": ["stale", "train.epochs: 10 -> 12", "train.lr: 0.05 -> 0.01"],
        "evaluate": ["stale", "output missing: data/evaluate"],
    }
    params.edit_file(["train.epochs=10", "train.lr=0.05"])
    code = in_toy_done.root / "work.py"
    code.write_text(code.read_text() + "\n")
    (in_toy_done.root / "data/ingest").write_text("by hand")
    assert why(in_toy_done)["ingest"] == ["stale", "code changed: work.py", "output modified: data/ingest"]
    assert why(in_toy_done)["baseline"] == ["stale", "code changed: work.py", "input changed: data/ingest"]


def test_status_of_a_stage_that_is_fresh_but_needs_a_stale_one(in_toy_done: Toy) -> None:
    params.edit_file(["purify_1.kld_limit=0.5"])
    found = why(in_toy_done)
    assert found["train"] == ["behind", "waits for purify_1"] and found["baseline"] == ["fresh"]


def test_status_of_what_never_ran_and_of_what_runs_now(in_toy: Toy) -> None:
    assert why(in_toy)["train"] == ["stale", "never ran"]
    in_toy.order("ingest", "sleep 600")
    child = in_toy.start("run", "--no-server")
    in_toy.process_of("ingest")
    time.sleep(0.1)
    state, reason = why(in_toy)["ingest"]
    assert state == "busy" and "another DVC process works on its files (PID" in reason
    child.terminate()
    assert child.wait(timeout=60) == 143
    assert in_toy.processes() == [os.getpid()]


def test_status_says_each_kind_of_reason_once() -> None:
    why = ["code changed: decant/data", "train.epochs: 10 -> 12", "code changed: decant/models", "never ran"]
    assert status.grouped(why) == ["code changed: decant/data, decant/models", "train.epochs: 10 -> 12", "never ran"]


def test_status_shows_what_the_last_run_took(in_toy_done: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(status.RUNS / "train.json", {"seconds": 12.34, "peak_memory_mib": 512, "date": "2026-01-02"})
    assert main.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "12.3" in shown and "512" in shown and "everything is up to date" in shown
    assert main.main(["status", "--json"]) == 0
    found = {entry["stage"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["train"] == {
        "stage": "train", "state": "fresh", "why": [], "seconds": 12.34, "memory_mib": 512, "date": "2026-01-02",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# explain, report, the result table
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows, of which verify dropped number 11 and detect nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    info = DatasetInfo(class_names=("cat", "dog"), source="photos", checksum="0")
    pixels = np.zeros((3, 4, 4, 1), np.uint8)
    pixels[1, :, 2:] = 255
    images = Images(np.array([10, 11, 12]), pixels, np.array([0, 1, 0], np.int32), info)
    for stage in ("ingest", "simulate", "purify_1", "purify_2"):
        write_images(Path(f"data/{stage}/train.parquet"), images)
    write_places(Path("data/ingest/places.parquet"), pd.DataFrame({"id": images.ids, "path": "photos/[a] cat.png"}))
    kept = images.select(images.ids != 11)
    for stage in ("verify", "detect"):
        write_images(Path(f"data/{stage}/train.parquet"), kept)
    verdicts = pd.DataFrame(
        {
            "id": [10, 11], "stage": "verify", "score": np.array([0.1, 0.93], np.float32), "flagged": [False, True],
            "action": ["keep", "drop"], "suggested_label": pd.array([None, 0], "Int32"),
            "reason": ["looks like a cat", "looks like a cat, not like a dog"],
        }
    )  # fmt: skip
    write_verdicts(Path("data/verify/verdicts.parquet"), verdicts)
    truth = pd.DataFrame({"id": [11], "attack": ["label_noise"], "original_label": [0]})
    write_truth(Path("data/simulate/truth.parquet"), truth)


def test_explain_tells_a_dropped_row_s_way(cleaned: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["explain", "11"]) == 0
    shown = capsys.readouterr().out
    assert "row 11, from photos/[a] cat.png" in shown
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == ["verify"])
    assert all(word in line for word in ("0.93 (1 − trust", "flagged, drop"))
    assert "label_noise (its true label: cat)" in shown
    assert "outcome: dropped; the row is in data/{ingest,simulate,purify_1,purify_2}/train.parquet" in shown
    assert "  @@" in shown  # the picture: dark left, bright right


def test_explain_of_a_kept_and_of_an_unknown_row(cleaned: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["explain", "10"]) == 0
    assert "outcome: kept" in capsys.readouterr().out
    assert main.main(["explain", "99"]) == 2
    assert "no row 99 in data/ingest/train.parquet" in capsys.readouterr().err


def test_picture_has_two_pixels_per_character() -> None:
    pixels = np.zeros((3, 2, 3), np.uint8)
    pixels[0, 1] = (255, 0, 7)
    text = explain.picture(pixels, in_colour=True)
    assert text.plain == "▀▀\n▀▀"
    assert {str(span.style) for span in text.spans} == {"rgb(0,0,0) on rgb(0,0,0)", "rgb(255,0,7) on rgb(0,0,0)"}
    assert explain.thinned(np.zeros((65, 10, 1))).shape == (22, 4, 1)


def test_report_prints_its_path_or_says_how_to_get_one(
    cleaned: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report"]) == 2
    assert "no report yet; `decant run` writes it" in capsys.readouterr().err
    path = tmp_path / "data/report/index.html"
    path.parent.mkdir()
    path.touch()
    assert main.main(["report"]) == 0
    assert Path(capsys.readouterr().out.strip()) == path.resolve()


def test_result_table_does_without_what_was_not_measured() -> None:
    assert table.result_of({}, {}) == table.ResultTable([], [], [])
    result = table.result_of(
        {"as_received": {"accuracy": 0.5}, "detect": {"flagged": 0}, "reviews": 0},
        {"train": {"seconds": 61.2, "peak_memory_mib": 2048, "device": "x86_64", "date": "2026"}},
    )
    assert result.steps == [("as received", "50.0 %", "–", "–")]
    assert result.cleaners == [("Δ-Influence", "0", "–", "–")]
    assert result.notes == [
        "rows that an expert looked at: 0",
        "last runs of 1 stages: 61 s, at most 2.0 GiB of memory, on x86_64",
    ]
    assert table.result_of({}, {}, queued=100).notes[0].startswith("100 rows wait for your answer: ")
    assert table.as_markdown(table.ResultTable([], [], [])) == ""


def test_result_table_fits_80_columns() -> None:
    full = {"accuracy": 1.0, "poison_success": 1.0, "rows": 1_000_000}
    result = table.result_of(dict.fromkeys([step.key for step in STEPS], full), {})
    console = Console(width=80)
    with console.capture() as captured:
        console.print(*terminal.result_tables(result))
    assert "after Δ-Influence and unlearning" in captured.get() and "…" not in captured.get()
