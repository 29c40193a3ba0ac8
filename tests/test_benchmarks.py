"""The bars: each one is compared with its figure, and a figure that was never measured falls short."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import ROOT, digits

from benchmarks import _detect, _labels, _unlearnable, affected_points, detectors, label_rivals, unlearning
from benchmarks.__main__ import STREAMS, bars_of, check, main, names, origin, table
from benchmarks._cells import Cell, definition
from benchmarks._rows import entry
from decant.data.images import Images
from decant.data.tables import read_images
from decant.files import read_json, write_json
from decant.label_checks import base as label_checks
from decant.models.settings import TrainSettings
from decant.models.training import train_classifier
from decant.unlearning.base import Unlearned, UnlearningTask

BAR = {"name": "a bar", "benchmark": "toy", "scale": "small", "key": "x", "limit": 0.5, "source": "a test"}


@pytest.mark.parametrize(
    ("direction", "figure", "holds"),
    [("at least", 0.5, True), ("at least", 0.49, False), ("at most", 0.5, True), ("at most", 0.51, False)],
)
def test_a_bar_holds_up_to_its_limit(tmp_path: Path, direction: str, figure: float, holds: bool) -> None:
    write_json(tmp_path / "toy-small.json", {"mean": {"x": figure}})
    assert check([{**BAR, "direction": direction}], tmp_path) is holds


def test_what_was_never_measured_falls_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not check([{**BAR, "direction": "at most"}], tmp_path)
    assert capsys.readouterr().out.startswith("SHORT a bar: not measured")


def test_bars_are_well_formed_and_each_stands_once() -> None:
    bars = bars_of(None)
    assert all(set(bar) == {*BAR, "direction"} for bar in bars)
    assert all(bar["direction"] in ("at least", "at most") and bar["scale"] in ("small", "full") for bar in bars)
    keys = [(bar["benchmark"], bar["scale"], bar["key"]) for bar in bars]
    assert len(keys) == len(set(keys))


def test_table_shows_every_value() -> None:
    result = {"values": {"x": [0.25, 0.75]}, "mean": {"x": 0.5}, "std": {"x": 0.354}}
    assert table(result).splitlines()[-1] == "| x | 0.5 | 0.35 | 0.25, 0.75 |"


def test_without_a_name_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in names())


def test_parameters_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import parameters

    assert parameters.page() == (ROOT / "docs/parameters.md").read_text(encoding="utf-8"), "run `make docs`"
    sys.modules.pop("parameters")


def test_cells_without_dvc_are_the_cells_of_dvc() -> None:
    """DVC's own reading of benchmarks/dvc.yaml, command by command, beside what runs where there is no DVC."""
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    stages = load_file(Repo(str(ROOT / "benchmarks")), str(ROOT / "benchmarks/dvc.yaml")).stages
    tables = ("small", "small-bounds", "small-partial", "full", "full-bounds", "full-partial", "full100")
    lasts = {kind: definition(kind)["matrix"] for name in tables for kind in (f"poison-{name}", f"cell-{name}")}
    cells = [Cell(kind, tuple(values[-1] for values in matrix.values())) for kind, matrix in lasts.items()]
    cells += [
        Cell("label-loops", ("mnist", "random", "plus", 0)),
        Cell("label-methods", ("cifar10n", "human", "confident_learning", 2)),
        Cell("detect-small", ("mnist", "badnet_noise", 4)),
    ]
    for cell in cells:
        stage = stages[cell.address]
        assert stage.cmd.split()[1:] == cell.command[1:]
        assert [Path(str(found)).name for found in stage.outs] == [cell.output.name]


@pytest.mark.parametrize(
    "table", ["small", "small-bounds", "small-partial", "full", "full-bounds", "full-partial", "full100"]
)
def test_every_cell_reads_what_some_stage_poisons(table: str) -> None:
    poisoned, read = definition(f"poison-{table}"), definition(f"cell-{table}")
    assert poisoned["outs"][0] in read["deps"]
    assert all(poisoned["matrix"][axis] == read["matrix"][axis] for axis in poisoned["matrix"])


def test_label_cells_name_methods_and_poisonings_that_exist() -> None:
    for name in ("label-loops", "label-methods"):
        axes = definition(name)["matrix"]
        assert set(axes["dataset"]) <= set(_labels.DATASETS)
        assert set(axes["poisoning"]) <= {*_labels.POISONINGS, "pair", "human"}
        assert set(axes["method"]) <= {*_labels.LABELTRUST, *label_checks.names()}


@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_comparison_of_label_checks_is_a_stage_of_dvc(scale: str) -> None:
    axes = definition("label-methods")["matrix"]
    wanted = label_rivals.compared(scale)
    assert len(set(wanted)) == len(wanted)
    for axis, values in zip(("dataset", "poisoning", "method"), zip(*wanted, strict=True), strict=True):
        assert set(values) <= set(axes[axis]), axis


@pytest.mark.parametrize(("poisoning", "share", "wrong"), [("random1", 0.01, 0.01), ("clean_label", 0.02, 0.0)])
def test_rows_to_be_found_carry_a_wrong_label_or_a_trigger(
    poisoning: str, share: float, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits()
    monkeypatch.setattr(_labels, "ingested", lambda *_: (train, test))
    rows = _labels.case("mnist", poisoning, seed=0)
    assert rows.bad.sum() == round(share * len(train))
    assert (rows.received.labels != rows.right).sum() == round(wrong * len(train))
    assert (rows.right == train.labels).all()


def test_rivals_are_compared_with_the_last_loop_that_the_budget_paid_for() -> None:
    found = {"loops": [{"frr": 0.3}, {"frr": 0.2}, {"frr": 0.1}]}
    assert [_labels.after(found, loop)["frr"] for loop in (0, 1, 2, 5)] == [0.3, 0.2, 0.1, 0.1]
    assert _labels.after({"loops": [{"frr": 0.2}]}, 5) == {"frr": 0.2}  # a label check has none


def test_figures_of_a_label_check_are_those_of_the_paper() -> None:
    """Six rows by hand: 2 of 4 right labels refused, 1 of 2 wrong ones; the last row is not counted."""
    wrong = np.array([False, False, False, False, True, True, True])
    flagged = np.array([True, True, False, False, True, False, True])
    score = np.array([0.9, 0.5, 0.2, 0.1, 0.8, 0.3, 0.0])
    found = _labels.figures(score, flagged, wrong, np.arange(7) < 6)
    assert (found["frr"], found["trr"], found["precision"]) == (0.5, 0.5, 1 / 3)
    assert found["auroc"] == 5 / 8
    assert found["precision_at_80"] == 2 / 4


def test_an_erring_expert_errs_as_often_as_stated() -> None:
    train, _ = digits()
    nothing = pd.DataFrame({"id": [], "original_label": []})
    assert _labels.ErringExpert(train, nothing, 0.0, seed=0).ask(train.ids) == _labels.Oracle(train, nothing).ask(
        train.ids
    )
    answers = _labels.ErringExpert(train, nothing, 0.05, seed=0).ask(train.ids)
    errors = np.mean([answers[int(row)] != label for row, label in zip(train.ids, train.labels, strict=True)])
    assert abs(errors - 0.05) < 0.02


def test_a_cell_poisons_trains_and_tells_its_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(_unlearnable.TRAIN, "small", TrainSettings(epochs=1))
    _unlearnable.main(["rows", "small", "rows"])
    _unlearnable.main(["poison", "rows", "small", "lsp", "0", "poisoned.parquet", "--percent", "20"])
    clean, noisy = read_images(Path("rows/train.parquet")), read_images(Path("poisoned.parquet"))
    assert (clean.pixels != noisy.pixels).any((1, 2, 3)).mean() == pytest.approx(0.2, abs=0.001)
    _unlearnable.main(["train", "rows", "poisoned.parquet", "small", "none", "small_cnn", "0", "cell.json"])
    assert 0.1 < read_json(Path("cell.json"))["accuracy"] <= 1


def test_an_attack_is_as_strong_and_on_as_many_rows_as_asked() -> None:
    assert entry("full", "em", strength=2)["strength"] == 16
    assert entry("full", "ar", percent=40) == {"name": "ar", "strength": 4.6, "rate": 0.4}
    assert entry("full", "ops") == {"name": "ops", "rate": 1.0}


def test_detector_cells_name_poisonings_that_exist() -> None:
    for name in ("detect-small", "detect-full"):
        assert set(definition(name)["matrix"]["poisoning"]) <= set(_detect.POISONINGS)


def test_means_of_detectors_are_over_the_cells_of_their_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells whose recall is a number of their own: 0.1 for badnet, 0.2 with noise, 0.3 to all, 0.6 for smooth."""
    recalls = {"badnet": 0.1, "badnet_noise": 0.2, "badnet_all": 0.3, "smooth": 0.6}
    quality = {"precision": 1.0, "average_precision": 1.0, "flagged": 5.0}
    found = {
        ("digits", name): {
            "success": 1.0,
            "innocent": {"mistakes": recall, "right": 0.0},
            "detectors": {kind: quality | {"recall": recall, "seconds": 1.0} for kind in detectors.names()},
            "any_label": {kind: quality | {"recall": recall / 2} for kind in detectors.names()},
            "points": {str(count): quality | {"recall": recall * count} for count in _detect.POINTS},
            "candidates": {
                way: {"top1": recall, "top5": 1.0, "average_precision": 0.5} for way in affected_points.RANKED
            },
        }
        for name, recall in recalls.items()
    }
    found["digits", "witches_brew"] = {"success": 0.0}  # it never worked: nothing to detect
    found["digits", "clean"] = {"innocent": {"mistakes": 0.001, "right": 0.0}}
    for module in (detectors, affected_points):
        monkeypatch.setattr(module, "cells", lambda scale, seed: found)
    figures = detectors.run("small", 0)
    assert {bar["key"] for bar in bars_of("detectors") if bar["scale"] == "small"} <= set(figures)
    assert figures["badnet.recall"] == pytest.approx((0.1 + 0.2 + 0.3) / 3) and figures["smooth.recall"] == 0.6
    assert figures["badnet_all.delta.any.recall"] == 0.15 and figures["witches_brew.success"] == 0
    assert figures["delta.recall"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4 / 2)
    assert figures["clean.flagged_share"] == 0.001 and figures["poisoned.mistakes"] == pytest.approx(0.3)
    points = affected_points.run("small", 0)
    assert points["smooth.points3.recall"] == pytest.approx(1.8) and points["candidates.alone.top1"] == pytest.approx(
        0.3
    )
    assert "witches_brew.points1.recall" not in points


@pytest.mark.parametrize(("streams", "honest"), [({}, True), ({"streams": STREAMS}, False)])
def test_a_table_measured_with_earlier_code_says_so(streams: dict[str, str], honest: bool) -> None:
    result = {"benchmark": "toy", "scale": "small", "n": 1, "versions": {}, "commit": "0123456789", **streams}
    said = origin(result | {"machine": {"device": "CPU", "cores": 2, "python": "3.11"}})
    assert "commit 0123456789" in said and ("Measured with earlier code" in said) is honest


BADNET = {"name": "badnet", "rate": 0.03, "size": 6}


def test_what_is_detected_from_one_point_is_unlearnt_and_its_complement_is_not_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the paper's Table 3, at small size: the poison that was detected and the poison that was not."""
    train, test = digits()
    monkeypatch.setitem(unlearning.TRAIN, "small", TrainSettings(epochs=6))
    monkeypatch.setattr(unlearning, "FOUND", unlearning.BY_DEFAULT)
    found = unlearning.of_attack(train, test, BADNET, "small", 0)
    assert found["detected.precision"] > 0.9 and found["detected.recall"] > 0.9
    assert found["trained.poison_success"] > 0.9 and found["detected.retrain.poison_success"] < 0.1
    assert found.get("rest.retrain.poison_success", 1) > 0.9


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_methods_are_told_what_was_detected_or_the_rest(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a detector that finds a share of the poison and five innocent rows, if it finds any."""
    train, test = digits()
    told: list[int] = []

    def some(model: object, rows: Images, affected: object, seed: int) -> np.ndarray:
        guilty = (rows.labels != train.labels) & (np.cumsum(rows.labels != train.labels) <= round(43 * share))
        return guilty | ((np.arange(len(rows)) < 5) & (share > 0))

    def noted(method: str, task: UnlearningTask) -> Unlearned:
        told.append(len(task.flagged))
        return Unlearned(model=train_classifier(train, TrainSettings(epochs=1), seed=1), seconds=1)

    monkeypatch.setitem(unlearning.TRAIN, "small", TrainSettings(epochs=2))
    monkeypatch.setattr(unlearning, "FOUND", unlearning.BY_DEFAULT)
    monkeypatch.setattr(unlearning, "detected", some)
    monkeypatch.setattr(unlearning, "unlearn_with", noted)
    found = unlearning.of_attack(train, test, BADNET, "small", 0)
    hits = round(43 * share)
    assert told == {0.0: [43], 0.5: [27, 21], 1.0: [48]}[share]
    assert found["detected.recall"] == hits / 43 and found["detected.precision"] == hits / max(1, hits + 5)
    assert ("rest.retrain.accuracy" in found) is (share < 1)
    as_trained = [found[f"detected.retrain.{key}"] == found[f"trained.{key}"] for key in ("accuracy", "seconds")]
    assert as_trained == [share == 0] * 2  # nothing detected: the model stays


def test_bars_of_unlearning_are_held_against_what_was_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = iter([(0.9, 0.8), (0.7, 0.69), (0.9, 0.9), (0.9, 0.9)])  # accuracy before and after

    def measured(*_: object) -> dict[str, float]:
        before, after = next(cases)
        found = {"trained.accuracy": before, "detected.retrain.accuracy": after, "detected.precision": 1.0}
        return found | {"detected.recall": 1.0, "detected.retrain.poison_success": 1 - after}

    monkeypatch.setattr(unlearning, "ingested", lambda *_: (None, None))
    monkeypatch.setattr(unlearning, "of_attack", measured)
    figures = unlearning.run("small", 0)
    keys = {bar["key"] for bar in bars_of("unlearning") if bar["scale"] == "small"}
    assert keys == {"detected.poison_success", "detected.accuracy_lost"} and keys <= set(figures)
    assert figures["detected.accuracy_lost"] == pytest.approx(0.1)
    assert figures["detected.poison_success"] == figures["smooth.detected.poison_success"] == pytest.approx(0.31)
