"""The stage `verify`: its files, its summary, and what it says to people."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from samples import digits

from decant.data.tables import TRUTH, read_images, read_verdicts, write_images, write_truth
from decant.labeltrust.settings import VerifySettings
from decant.summaries import VerifySummary
from tasks.verify import QUEUE, run

ROWS = 300


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    train, _ = digits()
    images = train.select(np.arange(ROWS))
    labels = images.labels.copy()
    labels[:30] = (labels[:30] + 1) % 10
    write_images(tmp_path / "purified.parquet", images.with_labels(labels))
    write_images(tmp_path / "received.parquet", images.with_labels(labels))
    truth = pd.DataFrame({"id": images.ids[:30], "attack": "label_noise", "original_label": images.labels[:30]})
    write_truth(tmp_path / "truth.parquet", truth)
    (tmp_path / "out").mkdir()
    return {
        "images": tmp_path / "purified.parquet",
        "received": tmp_path / "received.parquet",
        "truth": tmp_path / "truth.parquet",
        "decisions": tmp_path / "decisions.csv",
        "out": tmp_path / "out",
    }


def stage(inputs: dict[str, Path], **settings: Any) -> VerifySummary:
    quick = {"steps": 30, "rounds": 1, "references": 4, "reviews": 2, **settings}
    return run(seed=0, verify=VerifySettings(**quick), **inputs)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_row_has_a_verdict_and_the_counts_agree(inputs: dict[str, Path]) -> None:
    summary = stage(inputs)
    verdicts, kept = read_verdicts(inputs["out"] / "verdicts.parquet"), read_images(inputs["out"] / "train.parquet")
    reviews = pd.read_csv(inputs["out"] / "reviews.csv")
    assert sorted(files(inputs["out"])) == [
        "queue.csv",
        "reviews.csv",
        "scorer.safetensors",
        "train.parquet",
        "verdicts.parquet",
    ]
    assert verdicts["id"].tolist() == list(range(ROWS))
    assert verdicts["score"].between(0, 1).all()
    assert list(reviews.columns) == ["id", "given", "answer", "round", "why"]
    assert summary.rows_in == ROWS
    assert summary.rows_out == len(kept) == ROWS - summary.dropped == (verdicts["action"] == "keep").sum()
    assert summary.reviews == len(reviews)
    assert 0 < summary.dropped < 60
    assert f"dropped {summary.dropped} and relabelled 0 of {ROWS} rows" in summary.note


def test_the_operating_point_is_that_of_the_verdicts_and_stands_in_the_note(inputs: dict[str, Path]) -> None:
    summary = stage(inputs, steps=5, threshold="frr=0.05")
    seen = pd.read_csv(inputs["out"] / "reviews.csv")["id"]
    refused = read_verdicts(inputs["out"] / "verdicts.parquet").set_index("id")["flagged"].drop(seen)
    chosen, *others = summary.operating_points
    assert chosen.threshold == "frr=0.05" and chosen.refused == refused.sum() > 0
    assert chosen.frr <= 0.05 < max(other.frr for other in others)
    assert chosen.trust == pytest.approx(summary.threshold, abs=1e-4)
    assert f"{100 * chosen.frr:.1f} % of the right ones were dropped" in summary.note
    paper = stage(inputs, steps=5, mode="paper")
    assert paper.operating_points == () and "probably remain" not in paper.note


def test_two_runs_write_the_same_bytes(inputs: dict[str, Path]) -> None:
    first_summary = stage(inputs, steps=5)
    first = files(inputs["out"])
    assert stage(inputs, steps=5) == first_summary
    assert files(inputs["out"]) == first


def test_switched_off_passes_the_data_through(inputs: dict[str, Path]) -> None:
    summary = stage(inputs, enabled=False)
    assert files(inputs["out"])["train.parquet"] == inputs["images"].read_bytes()
    assert (read_verdicts(inputs["out"] / "verdicts.parquet")["action"] == "keep").all()
    assert summary.rows_out == ROWS
    assert summary.note.startswith("switched off:")
    assert pd.read_csv(inputs["out"] / "reviews.csv").empty


def test_a_person_who_has_not_answered_yet_is_told_what_to_do(inputs: dict[str, Path]) -> None:
    inputs["truth"].unlink()  # which only the oracle may need
    summary = stage(inputs, expert="file")
    queue = pd.read_csv(inputs["out"] / "queue.csv")
    assert summary.rows_out == ROWS
    assert summary.queued == len(queue) == 40
    assert list(queue.columns) == QUEUE
    assert queue[["suggested", "trust", "label", "like_given", "like_suggested"]].isna().all().all()
    assert "40 rows wait for your answer" in summary.note
    assert str(inputs["decisions"]) in summary.note


def test_a_filled_in_queue_is_a_file_of_decisions(inputs: dict[str, Path]) -> None:
    stage(inputs, expert="file")
    queue = pd.read_csv(inputs["out"] / "queue.csv")
    originals = digits()[0].labels
    queue.assign(label=originals[queue["id"]]).to_csv(inputs["decisions"], index=False)
    summary = stage(inputs, expert="file", steps=5)
    assert summary.reviews == len(queue)
    assert summary.label_noise_rate is not None
    answers = pd.read_csv(inputs["out"] / "reviews.csv").set_index("id")["answer"]
    second = pd.read_csv(inputs["out"] / "queue.csv")  # of the next round, with what the network makes of each row
    assert second["suggested"].notna().all() and second["trust"].between(0, 1).all()
    for label, ids in zip(second["given"], second["like_given"], strict=True):
        assert [answers[int(row)] for row in ids.split()] == [label] * min(4, (answers == label).sum())


def test_answers_stay_with_their_pictures_when_the_data_change(inputs: dict[str, Path]) -> None:
    stage(inputs, expert="file")
    queue = pd.read_csv(inputs["out"] / "queue.csv")
    queue.assign(label=digits()[0].labels[queue["id"]]).to_csv(inputs["decisions"], index=False)
    for table in ("images", "received"):  # a new picture comes first, all others move on by one
        rows = read_images(inputs[table])
        moved = np.concatenate([[ROWS - 1], np.arange(ROWS - 1)])
        write_images(inputs[table], replace(rows.select(moved), ids=rows.ids))
    summary = stage(inputs, expert="file", steps=2)
    assert summary.reviews == 0 and summary.queued == 40
    assert "The answers about 40 rows don't count, because the pixels" in summary.note


def test_answers_about_rows_that_nobody_drew_are_enough_to_judge_and_the_note_names_no_interval(
    inputs: dict[str, Path],
) -> None:
    stage(inputs, expert="file")
    drawn = pd.read_csv(inputs["out"] / "queue.csv")["id"]
    others = np.setdiff1d(np.arange(ROWS), drawn)
    rows = pd.DataFrame({"id": others, "label": digits()[0].labels[others]})
    rows.groupby("label").head(3).to_csv(inputs["decisions"], index=False)
    summary = stage(inputs, expert="file", rounds=0, steps=5)
    assert summary.reviews == 30 and summary.label_noise_interval is None
    assert "of the labels are wrong (estimated)" in summary.note and "drawn at random" not in summary.note


def test_an_oracle_without_a_simulation_warns_that_it_knows_nothing(inputs: dict[str, Path]) -> None:
    nothing = pd.DataFrame({name: [] for name in TRUTH.names}).astype({"id": "int64", "original_label": "int32"})
    write_truth(inputs["truth"], nothing.astype({"attack": "str"}))
    assert "set verify.expert to person" in stage(inputs, steps=2).note
