"""Experts: what they reveal, how their answers are counted, and how a person's decisions are read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decant.data.images import DatasetInfo, Images
from decant.labeltrust.decisions import UNCLEAR, Asked
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.review_rounds import (
    DISPUTED,
    EARLIER,
    FIRST,
    RANDOM,
    REFUSED,
    Reviews,
    chosen_rows,
    draw_references,
)

INFO = DatasetInfo(class_names=("cat", "dog", "2"), source="test", checksum="test")


def labelled(labels: list[int] | np.ndarray) -> Images:
    """Images of nothing, with ids 100, 101, ..."""
    n = len(labels)
    return Images(np.arange(n) + 100, np.zeros((n, 8, 8, 1), np.uint8), np.asarray(labels, np.int32), INFO)


def truth_of(rows: dict[int, int]) -> pd.DataFrame:
    return pd.DataFrame({"id": list(rows), "attack": "planted", "original_label": list(rows.values())})


def decisions(folder: Path, text: str) -> Path:
    path = folder / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    return path


# --- the oracle ------------------------------------------------------------------------------------------------------


def test_the_oracle_answers_from_the_truth_and_only_about_rows_that_it_is_shown() -> None:
    oracle = Oracle(labelled([0, 0, 1]), truth_of({101: 2}))
    assert oracle.ask(np.array([101, 102])) == {101: 2, 102: 1}
    assert oracle.on_file() == {}
    assert not [name for name in vars(oracle) if not name.startswith("_") and name != "asked"]


def test_the_oracle_charges_for_every_row_that_it_is_shown_even_twice() -> None:
    oracle = Oracle(labelled([0, 0, 1]), truth_of({}))
    oracle.ask(np.array([100, 101]))
    oracle.ask(np.array([101]))
    assert oracle.asked == 3


# --- a person's file -------------------------------------------------------------------------------------------------


def test_decisions_may_be_names_numbers_or_unclear_and_a_name_beats_a_number(tmp_path: Path) -> None:
    images = Images(np.arange(4), np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), INFO)
    path = decisions(tmp_path, "id,label,remark\n0,dog,x\n1,1,\n2,Unclear,\n3,2,the class called 2\n")
    assert FileExpert(path, images).ask(np.arange(4)) == {0: 1, 1: 1, 2: UNCLEAR, 3: 2}


def test_rows_that_are_blank_missing_or_of_another_dataset_are_not_answered(tmp_path: Path) -> None:
    expert = FileExpert(decisions(tmp_path, "id,label\n100,\n101,cat\n999,dog\n"), labelled([0, 0, 1]))
    assert expert.ask(np.array([100, 101, 102])) == {101: 0}
    assert expert.on_file() == {101: Asked()}


def test_an_answer_counts_for_the_picture_that_it_was_about(tmp_path: Path) -> None:
    """A picture was added before the others, so that ids moved on by one; the first line was written by hand."""
    lines = ["id,label,picture", "100,cat,", "101,dog,aa", "102,dog,bb", "103,cow of other data,cc"]
    path, images = decisions(tmp_path, "\n".join(lines)), labelled([0, 0, 1])
    expert = FileExpert(path, images, {100: "new", 101: "new too", 102: "bb"})
    assert expert.ask(images.ids) == {100: 0, 102: 1}
    assert sorted(expert.on_file()) == [100, 102] and expert.outdated == 1


@pytest.mark.parametrize("text", [None, "", "id,label\n"])
def test_no_decisions_yet_is_no_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "decisions.csv" if text is None else decisions(tmp_path, text)
    assert FileExpert(path, labelled([0])).on_file() == {}


# --- which rows are shown --------------------------------------------------------------------------------------------


def test_references_are_drawn_until_enough_are_confirmed_and_every_look_is_counted() -> None:
    rng = np.random.default_rng(0)
    given = np.repeat([0, 1, 2], 40)
    wrong = rng.permutation(40)[:16]  # of class 0, two rows in five
    images = labelled(given)
    oracle = Oracle(images, truth_of({int(100 + row): 1 for row in wrong}))
    reviews = Reviews(images)
    draw_references(reviews, oracle, 10, rng)
    assert np.bincount(given[reviews.confirmed]).tolist() == [10, 10, 10]
    refuted = reviews.reviewed & ~reviews.confirmed
    assert refuted.sum() > 0
    assert oracle.asked == reviews.reviewed.sum() == 30 + refuted.sum()
    counts = reviews.first_draw_counts()  # [true, given]
    assert counts.tolist() == [[10, 0, 0], [refuted.sum(), 10, 0], [0, 0, 10]]
    assert set(reviews.references) == set(np.flatnonzero(reviews.reviewed))


def test_a_class_with_too_few_rows_is_shown_whole() -> None:
    reviews = Reviews(labelled([0, 0, 0, 1]))
    draw_references(reviews, Oracle(reviews.images, truth_of({})), 2, np.random.default_rng(0))
    assert reviews.confirmed.tolist().count(True) == 3


def test_unanswered_rows_wait_and_no_more_than_needed_are_asked_for(tmp_path: Path) -> None:
    images = labelled(np.repeat([0, 1], 20))
    reviews = Reviews(images)
    draw_references(reviews, FileExpert(tmp_path / "none.csv", images), 4, np.random.default_rng(0))
    assert np.bincount(images.labels[reviews.waiting]).tolist() == [4, 4]
    queue = reviews.table(reviews.waiting)
    answers = decisions(
        tmp_path, "id,label\n" + "".join(f"{i},{g}\n" for i, g in zip(queue.id, queue.given, strict=True))
    )
    again = Reviews(images)
    draw_references(again, FileExpert(answers, images), 4, np.random.default_rng(0))
    assert not again.waiting.any()
    assert again.confirmed.sum() == 8


def recorded(folder: Path, lines: list[tuple[int, str, str, Asked]]) -> Path:
    """A file of decisions as the review page writes it."""
    rows = [
        f"{row},{label},{expert},2030-01-01,{how.round},{how.rows or ''},{how.why},{how.trust or ''}"
        for row, label, expert, how in lines
    ]
    return decisions(folder, "\n".join(["id,label,expert,at,round,rows,why,trust", *rows, ""]))


def test_an_earlier_first_draw_counts_as_one_under_another_seed(tmp_path: Path) -> None:
    images, names = labelled(np.repeat([0, 1], 20)), INFO.class_names
    reviews = Reviews(images)
    draw_references(reviews, FileExpert(tmp_path / "none.csv", images), 4, np.random.default_rng(0))
    drawn = np.flatnonzero(reviews.waiting)
    lines = [(row + 100, names[images.labels[row]], "anna", Asked(0, None, FIRST)) for row in drawn]
    for answered in (8, 5):  # all of them, or all of class 0 and one of class 1
        again = Reviews(images)
        expert = FileExpert(recorded(tmp_path, lines[:answered]), images)
        draw_references(again, expert, 4, np.random.default_rng(1), budget=7)
        assert (again.rounds == 0).sum() == max(7, answered) and again.waiting.sum() == max(0, 7 - answered)
        assert set(drawn[:answered]) == set(again.references.tolist())
        assert again.first_draw_counts().sum() == answered


def test_rows_of_a_round_keep_it_and_what_is_open_among_them_waits_again(tmp_path: Path) -> None:
    images = labelled(np.repeat([0, 1], 20))
    said = [
        (101, "cat", "anna", Asked(1, 5, DISPUTED, 0.4)),
        (102, "dog", "anna", Asked(2, 6, RANDOM, 0.7)),
        (103, "cat", "anna", Asked(2, 6, RANDOM, 0.8)),
        (103, "dog", "ben", Asked(2, 6, RANDOM, 0.8)),
    ]
    path = recorded(tmp_path, said)
    path.write_text(path.read_text() + "104,cat,,,,,,\n105,cat,anna,,,,,\n105,dog,ben,,,,,\n", encoding="utf-8")
    reviews = Reviews(images)
    draw_references(reviews, FileExpert(path, images), 0, np.random.default_rng(0))
    found = reviews.table(reviews.rounds >= 0).set_index("id")[["answer", "round", "why"]]
    assert found.sort_index().to_numpy().tolist() == [
        ["cat", 1, DISPUTED],
        ["dog", 2, RANDOM],
        ["", 2, RANDOM],
        ["cat", 1, EARLIER],
        ["", 1, EARLIER],
    ]
    assert reviews.images.ids[reviews.waiting].tolist() == [103, 105]
    assert reviews.trust_before[[1, 2, 3]].tolist() == pytest.approx([np.nan, 0.7, 0.8], nan_ok=True)
    assert [reviews.missing(number, 10) for number in (1, 2, 3)] == [2, 4, 25]


def test_the_next_rows_are_refused_disputed_and_random_ones_that_nobody_saw() -> None:
    rng = np.random.default_rng(0)
    n = 900
    images = labelled(rng.integers(0, 3, n))
    q = rng.dirichlet(np.ones(3), n)
    trust = q[np.arange(n), images.labels]
    reviews = Reviews(images)
    reviews.ask(Oracle(images, truth_of({})), np.arange(0, n, 2), 0, "seen")
    agrees = q.argmax(1) == images.labels
    chosen = list(chosen_rows(q, trust, reviews, 10, rng))
    every = np.concatenate([rows for rows, _ in chosen])
    assert len(every) == len(set(every)) == 30
    assert (every % 2 == 1).all()
    for number, (rows, why) in enumerate(chosen):
        assert len(rows) == {REFUSED: 6, DISPUTED: 2, RANDOM: 2}[why]
        assert (q[rows].argmax(1) == number // 3).all()
        assert why == RANDOM or (agrees[rows] == (why == REFUSED)).all()
    of_three = [why for rows, why in chosen_rows(q, trust, reviews, 3, rng) for _ in rows]
    assert of_three == 3 * [REFUSED, DISPUTED, RANDOM], "also a short round has something random"
    refused = chosen[0][0]
    pool = np.flatnonzero((q.argmax(1) == 0) & agrees & (np.arange(n) % 2 == 1))
    assert q[refused].max(1).max() <= np.sort(q[pool].max(1))[29]
