"""`verify.method`: any label check in the pipeline, with the expert, the verdicts and the queue of `verify`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from samples import digits

from decant.data.tables import read_verdicts, write_images, write_truth
from decant.errors import SettingsError, StageError
from decant.labeltrust.settings import VerifySettings
from decant.settings import load
from decant.summaries import VerifySummary
from tasks.verify import run

ROWS = 600
WRONG = np.random.default_rng(1).permutation(ROWS)[:60]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Digits with 10 % wrong labels, each any other class."""
    right = digits()[0].select(np.arange(ROWS))
    labels = right.labels.copy()
    labels[WRONG] = (labels[WRONG] + np.random.default_rng(2).integers(1, 10, len(WRONG))) % 10
    truth = pd.DataFrame({"id": right.ids[WRONG], "attack": "label_noise", "original_label": right.labels[WRONG]})
    write_images(tmp_path / "images.parquet", right.with_labels(labels))
    write_truth(tmp_path / "truth.parquet", truth)
    (tmp_path / "out").mkdir()
    paths = {name: tmp_path / f"{name}.parquet" for name in ("images", "truth")}
    return paths | {"received": paths["images"], "decisions": tmp_path / "decisions.csv", "out": tmp_path / "out"}


def stage(inputs: dict[str, Path], method: str, **settings: Any) -> tuple[VerifySummary, pd.DataFrame]:
    """(the summary, the verdicts)"""
    summary = run(seed=0, verify=VerifySettings(method=method, references=4, **settings), **inputs)
    return summary, read_verdicts(inputs["out"] / "verdicts.parquet")


@pytest.mark.parametrize("method", ["confident_learning", "knn"])
def test_a_label_check_finds_the_planted_wrong_labels(inputs: dict[str, Path], method: str) -> None:
    if method == "confident_learning":
        pytest.importorskip("cleanlab")
    summary, verdicts = stage(inputs, method)
    wrong = np.isin(np.arange(ROWS), WRONG)
    seen = np.isin(verdicts["id"], pd.read_csv(inputs["out"] / "reviews.csv")["id"])
    dropped = (verdicts["action"] == "drop").to_numpy()
    assert wrong[dropped & ~seen].mean() > 0.8, "precision"
    assert dropped[wrong & ~seen].mean() > 0.75, "recall"
    assert (dropped == wrong)[seen].all() and seen.sum() >= 40, "the expert has the last word"
    assert verdicts["score"].between(0, 1).all()
    assert verdicts["score"][wrong].median() > verdicts["score"][~wrong].quantile(0.95)
    assert summary.dropped == dropped.sum() and summary.reviews == seen.sum() and summary.threshold is None
    assert (
        summary.label_noise_interval is not None
        and summary.label_noise_interval[0] < 0.1 < summary.label_noise_interval[1]
    )
    assert f"By {method}: " in summary.note and summary.operating_points == ()
    assert not (inputs["out"] / "scorer.safetensors").exists()


def test_a_flagged_row_is_relabelled_by_the_experts_word_alone(inputs: dict[str, Path]) -> None:
    _, verdicts = stage(inputs, "knn", action="relabel")
    reviews = pd.read_csv(inputs["out"] / "reviews.csv").set_index("id")
    refuted = reviews[reviews["given"] != reviews["answer"]]
    relabelled = verdicts[verdicts["action"] == "relabel"].set_index("id")
    assert sorted(relabelled.index) == sorted(refuted.index) and len(refuted) > 0
    assert (relabelled["suggested_label"] == refuted["answer"][relabelled.index]).all()
    assert (verdicts["action"] == "drop").sum() > 30


def test_labels_are_judged_before_a_person_has_answered_and_the_references_wait(inputs: dict[str, Path]) -> None:
    inputs["truth"].unlink()  # which only the oracle may need
    summary, verdicts = stage(inputs, "knn", expert="file")
    queue = pd.read_csv(inputs["out"] / "queue.csv")
    assert summary.queued == len(queue) == 40 and (queue["round"] == 0).all()
    assert verdicts["flagged"].to_numpy()[WRONG].mean() > 0.75
    originals = digits()[0].labels
    queue.assign(label=originals[queue["id"]]).to_csv(inputs["decisions"], index=False)
    later, _ = stage(inputs, "knn", expert="file")
    assert later.reviews == 40 and later.queued < 10, "only what an answer refuted is asked anew"


def test_a_check_that_needs_references_waits_for_them(inputs: dict[str, Path]) -> None:
    summary, verdicts = stage(inputs, "orion", expert="file")
    assert (verdicts["action"] == "keep").all() and summary.queued == 40 and summary.label_noise_rate is None
    assert (verdicts["reason"] == "not judged: too few references so far").all()


def test_an_unknown_method_is_refused_with_all_names() -> None:
    names = "activation_clustering, .*confident_learning, .*knn, labeltrust, "
    with pytest.raises(SettingsError, match=rf"^verify.method: one of {names}.* expected, 'prayer' found$"):
        load(VerifySettings, {"method": "prayer"}, "verify")
    with pytest.raises(SettingsError, match=r"^verify.threshold: needs verify.method: labeltrust, 'knn' found$"):
        VerifySettings(method="knn", threshold="far=0.01")


def test_a_method_whose_library_is_missing_says_how_to_get_it(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(StageError, match=r"^confident_learning: needs cleanlab: pip install 'decant\[peers\]'"):
        stage(inputs, "confident_learning")
