"""All stages on real data, small: no row is lost silently, nothing differs between two runs, off means untouched."""

import inspect
import re
import shutil
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from decant.data.tables import read_images, read_truth
from decant.files import read_json
from decant.summaries import Summary
from tasks.__main__ import main

ROOT = Path(__file__).parents[1]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CLEANING = ("purify_1", "verify", "detect", "unlearn")  # each says in its note when it is switched off


def run_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: dict[str, Any]) -> Path:
    """dvc.yaml's commands, in its order and in this process, on 400 digits with few training steps."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick: dict[str, dict[str, Any]] = {
        "ingest": {"limit": 400},
        "train": {"epochs": 2},
        "purify_1": {"epochs": 1},
        "purify_2": {"epochs": 1},
        "purify": {"when": "always"},
        "verify": {"steps": 10, "rounds": 1, "references": 3, "reviews": 2},
    }
    for block in {*quick, *changes}:
        params[block] |= quick.get(block, {}) | changes.get(block, {})
    (folder / "data/inputs").mkdir(parents=True)
    for name in ("decisions.csv", "affected.csv"):
        (folder / "data/inputs" / name).write_bytes((ROOT / "data/inputs" / name).read_bytes())
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(folder)
    for name, stage in STAGES.items():
        assert main(stage["cmd"].split()[3:]) == 0, name
    return folder


def summary_of(stage: str, folder: Path) -> Summary:
    kind: type[Summary] = inspect.signature(import_module(f"tasks.{stage}").run).return_annotation
    return kind.read(folder / "data" / stage)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run_pipeline(tmp_path_factory.mktemp("poisoned"), monkeypatch)


def test_every_ingested_row_is_exported_or_in_the_audit(poisoned: Path) -> None:
    ingested = read_images(poisoned / "data/ingest/train.parquet")
    exported = pd.read_parquet(poisoned / "data/export/train-00000-of-00001.parquet", columns=["id", "label"])
    audit = pd.read_csv(poisoned / "data/export/audit.csv")
    dropped = set(audit.loc[audit["action"] == "drop", "id"])
    assert set(ingested.ids) == set(exported["id"]) | dropped
    assert not set(exported["id"]) & dropped


def test_labels_that_differ_from_those_received_are_in_the_audit(poisoned: Path) -> None:
    received = read_images(poisoned / "data/simulate/train.parquet")
    given = pd.Series(received.labels, index=received.ids)
    exported = pd.read_parquet(poisoned / "data/export/train-00000-of-00001.parquet", columns=["id", "label"])
    changed = exported.loc[exported["label"].to_numpy() != given.loc[exported["id"]].to_numpy(), "id"]
    audit = pd.read_csv(poisoned / "data/export/audit.csv")
    assert set(changed) <= set(audit.loc[audit["action"] == "relabel", "id"])


def test_rows_in_are_the_rows_that_the_stage_before_put_out(poisoned: Path) -> None:
    chain = ("ingest", "simulate", "purify_1", "purify_2", "verify", "detect", "unlearn")
    summaries = [summary_of(stage, poisoned) for stage in chain]
    for before, after in pairwise(summaries[1:]):
        assert after.rows_in == before.rows_out, after
    assert all(summary.note for summary in summaries)


def test_the_truth_agrees_with_what_was_changed(poisoned: Path) -> None:
    original = read_images(poisoned / "data/ingest/train.parquet")
    received = read_images(poisoned / "data/simulate/train.parquet")
    truth = read_truth(poisoned / "data/simulate/truth.parquet")
    relabelled = set(original.ids[original.labels != received.labels])
    assert relabelled == set(truth.loc[truth["attack"] == "label_noise", "id"])
    assert set(truth["id"]) == set(original.ids)  # LSP lies on every row


def test_metrics_are_fractions_with_the_promised_keys(poisoned: Path) -> None:
    found = read_json(poisoned / "metrics.json")
    for step in ("as_received", "purified", "verified", "cleaned", "oracle"):
        assert set(found[step]) == {"accuracy", "poison_success", "rows"}
        assert 0 <= found[step]["accuracy"] <= 1 and 0 <= found[step]["poison_success"] <= 1
    for stage in ("purify", "verify", "detect"):
        assert 0 <= found[stage]["recall"] <= 1 and found[stage]["flagged"] >= 0
    assert found["reviews"] == len(pd.read_csv(poisoned / "data/verify/reviews.csv"))


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_a_stage_that_is_given_the_whole_folder_reads_only_what_it_declares(
    stage: str, poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = [name for name in STAGES[stage]["deps"] if not name.startswith(("decant/", "tasks/"))]
    for source in (poisoned / name for name in {*declared, "params.yaml"}):
        target = tmp_path / source.relative_to(poisoned)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    monkeypatch.chdir(tmp_path)
    assert main(STAGES[stage]["cmd"].split()[3:]) == 0
    made = [path for path in (tmp_path / "data" / stage).iterdir() if path.is_file()]
    assert made and all(path.read_bytes() == (poisoned / "data" / stage / path.name).read_bytes() for path in made)


def test_a_second_run_writes_the_same_bytes(poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = run_pipeline(tmp_path, monkeypatch)
    files = [path.relative_to(poisoned) for path in poisoned.rglob("*") if path.is_file()]
    hashed = [path for path in files if not path.is_relative_to("data/runs")]
    assert len(hashed) > 30
    different = [path for path in hashed if (poisoned / path).read_bytes() != (again / path).read_bytes()]
    assert not different


def test_with_all_stages_off_the_data_comes_out_as_it_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off: dict[str, dict[str, Any]] = {stage: {"enabled": False} for stage in ("verify", "detect", "unlearn")}
    off["purify"] = {"when": "never"}
    folder = run_pipeline(tmp_path, monkeypatch, simulate={"attacks": []}, **off)
    before, after = (read_images(folder / f"data/{stage}/train.parquet") for stage in ("ingest", "detect"))
    assert np.array_equal(before.pixels, after.pixels) and np.array_equal(before.labels, after.labels)
    found = read_json(folder / "metrics.json")
    assert "poison_success" not in found["cleaned"] and "verify" not in found
    assert found["as_received"] == found["cleaned"]  # one seed, one recipe, the same rows
    assert "oracle" not in found and "oracle" not in (folder / "data/evaluate/steps.csv").read_text()
    for stage in CLEANING:
        assert "switched off" in summary_of(stage, folder).note


def test_the_examples_of_label_checks_run_where_the_pipeline_ran(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(poisoned)
    page = (ROOT / "docs/label-checks.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(block, "label-checks.md", "exec"), known)
    assert known["check"].flagged.shape == (len(known["images"]),) and len(known["worst"]) == 20
    assert known["trust"].shape == (len(known["test"]),)


def test_stage_signatures_are_keyword_only_and_typed() -> None:
    for stage in STAGES:
        for argument in inspect.signature(import_module(f"tasks.{stage}").run).parameters.values():
            assert argument.kind is argument.KEYWORD_ONLY and argument.annotation is not argument.empty, stage
