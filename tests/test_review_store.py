"""Answers on file: what is written, what counts, who disagrees, and what a crash or a second writer can't lose."""

import multiprocessing
import subprocess
import threading
from pathlib import Path

import pytest
from reviewing import CLASSES, QUEUE, pictures_of, review_files, store_in

from decant.errors import StageError
from decant.labeltrust.decisions import UNCLEAR, UNNAMED, Asked, Decision, read_decisions
from decant.labeltrust.experts import FileExpert
from decant.review.answers import append, lock_of
from decant.review.store import Closed, NotAsked

HEADER = "id,label,expert,at,round,rows,why,trust,picture\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    review_files(tmp_path)
    return tmp_path


def lines(root: Path) -> list[list[str]]:
    """id, label, expert of every line on file; what stands under `at` differs from run to run."""
    text = (root / "data/inputs/decisions.csv").read_text()
    assert text.startswith(HEADER) and text.endswith("\n")
    return [line.split(",")[:3] for line in text.splitlines()[1:]]


def verdicts(root: Path) -> dict[int, int]:
    """What the stage `verify` reads."""
    images = pictures_of()
    return FileExpert(root / "data/inputs/decisions.csv", images).ask(images.ids)


# --- one expert ------------------------------------------------------------------------------------------------------


def test_an_answer_is_on_file_at_once_and_the_stage_reads_it(root: Path) -> None:
    store = store_in(root)
    assert store.answer(11, "dog", "answer-1")
    assert lines(root) == [["11", "dog", ""]]
    assert store.answer(12, "unclear", "answer-2")
    assert verdicts(root) == {11: 1, 12: UNCLEAR}


def test_how_the_row_was_asked_stands_beside_the_answer(root: Path) -> None:
    for row in (11, 12, 13):
        store_in(root).answer(row, "dog", f"answer-{row}")
    store_in(root).answer(13, None, "undo-0001")
    assert read_decisions(root / "data/inputs/decisions.csv").asked() == {
        11: Asked(1, 3, "label disputed", 0.2),
        12: Asked(1, 3, "likely false refusal"),
        13: Asked(1, 3, "drawn at random", 0.9),
    }


def test_the_same_answer_sent_again_is_written_once(root: Path) -> None:
    store = store_in(root)
    assert store.answer(11, "dog", "answer-1")
    assert not store.answer(11, "dog", "answer-1")
    assert not store.answer(11, "dog", "answer-2"), "it stands already"
    assert not store_in(root).answer(11, "dog", "answer-3"), "also for a page that was started anew"
    assert len(lines(root)) == 1


def test_a_late_copy_of_an_answer_does_not_undo_the_undo(root: Path) -> None:
    store = store_in(root)
    store.answer(11, "dog", "answer-1")
    assert store.answer(11, None, "undo-1")
    assert not store.answer(11, "dog", "answer-1")
    assert lines(root) == [["11", "dog", ""], ["11", "", ""]]
    assert verdicts(root) == {}


def test_the_last_word_counts_also_after_a_hand_written_line(root: Path) -> None:
    (root / "data/inputs/decisions.csv").write_text("id,label\n11,cat\n12,\n")
    store = store_in(root)
    assert verdicts(root) == {11: 0}
    store.answer(11, "2", "answer-1")
    store.answer(11, "dog", "answer-2")
    assert verdicts(root) == {11: 1}


def test_rows_that_are_not_asked_for_and_labels_that_are_no_class_are_refused(root: Path) -> None:
    store = store_in(root)
    with pytest.raises(NotAsked):
        store.answer(14, "dog", "answer-1")
    with pytest.raises(StageError, match="one of cat, dog, 2 or 'unclear' expected, 'cow' found"):
        store.answer(11, "cow", "answer-2")
    assert (root / "data/inputs/decisions.csv").read_text() == "id,label\n"


def test_progress_counts_this_round_and_all_rounds(root: Path) -> None:
    store = store_in(root)
    assert (store.progress().round, store.progress().round_answered, store.progress().round_asked) == (1, 0, 3)
    store.answer(11, "dog", "answer-1")
    found = store.progress()
    assert (found.round_answered, found.answered, found.asked, found.open, found.mine) == (1, 3, 5, 2, 1)


def test_what_undo_takes_back_is_known_after_a_restart(root: Path) -> None:
    for row in (13, 11, 12):
        store_in(root).answer(row, "dog", f"answer-{row}")
    store_in(root).answer(11, None, "undo-0001")
    assert store_in(root).read().steps(UNNAMED) == [(13, None, "dog"), (12, None, "dog")]


def test_while_the_stage_is_at_work_there_is_nothing_to_answer(root: Path) -> None:
    store = store_in(root)
    store.questions()
    (root / "data/verify/queue.csv").unlink()  # DVC removes a stage's outputs before it runs
    with pytest.raises(Closed):
        store.answer(11, "dog", "answer-1")
    (root / "data/verify/queue.csv").write_text(QUEUE.replace("11,cat", "15,cat"))
    assert list(store.questions()) == [15, 12, 13]


def test_queue_of_an_older_verify_and_one_that_is_none(root: Path) -> None:
    queue = root / "data/verify/queue.csv"
    queue.write_text("id,given,label,round,why\n11,cat,,0,drawn\n")
    (question,) = store_in(root).questions().values()
    assert (question.suggested, question.trust, question.like_given) == ("", None, ())
    assert question.asked == Asked(0, None, "drawn")
    queue.write_text("name\nx\n")
    with pytest.raises(StageError, match=r"queue.csv: not the queue that `verify` writes"):
        store_in(root).questions()
    queue.write_bytes("id,given\n11,Köter\n".encode("latin-1"))
    with pytest.raises(StageError, match=r"queue.csv: not a CSV in UTF-8"):
        store_in(root).questions()


def test_an_answer_about_another_picture_than_the_row_shows_now_does_not_count(root: Path) -> None:
    queue = root / "data/verify/queue.csv"
    named = QUEUE.replace(",why,", ",why,picture,").replace("label disputed,", "label disputed,picture-of-then,")
    queue.write_text(named)
    store = store_in(root)
    assert store.answer(11, "dog", "answer-1")
    assert store.read().votes == {11: {"": 1}} and store.progress().open == 2
    queue.write_text(named.replace("picture-of-then", "picture-of-now"))
    assert store.read().votes == {} and store.read().steps(UNNAMED) == [] and store.progress().open == 3
    assert store.answer(11, "dog", "answer-2"), "the same word about another picture"
    assert store.read().votes == {11: {"": 1}}
    queue.write_text(QUEUE)  # of an older Decant, which named no pictures
    assert store.read().votes == {11: {"": 1}}


def test_a_mistake_in_an_answer_about_a_row_outside_the_queue_is_told(root: Path) -> None:
    (root / "data/inputs/decisions.csv").write_text("id,label,picture\n15,cow,p1\n")
    with pytest.raises(StageError, match="line 2: one of cat"):
        store_in(root).progress()


def test_git_keeps_the_lines_of_both_sides_also_when_one_has_added_columns(tmp_path: Path) -> None:
    base, ours, theirs = (tmp_path / name for name in ("base", "ours", "theirs"))
    for path in (base, ours, theirs):
        path.write_text("id,label,expert,at\n10,cat,anna,2030-01-01\n11,cat,anna,2030-01-01\n")
    append(ours, [Decision(12, "dog", "anna", "2030-01-02", Asked(picture="p1"))])
    theirs.write_text(theirs.read_text() + "10,dog,ben,2030-01-02\n")
    subprocess.run(["git", "merge-file", "--union", ours, base, theirs], check=True)
    assert read_decisions(ours).votes(CLASSES) == {10: {"anna": 0, "ben": 1}, 11: {"anna": 0}, 12: {"anna": 1}}


# --- several experts -------------------------------------------------------------------------------------------------


def test_experts_who_disagree_leave_a_row_open_until_a_majority_or_all_agree(root: Path) -> None:
    anna, ben, cleo = (store_in(root, name) for name in ("anna", "ben", "cleo"))
    anna.answer(11, "cat", "anna-0001")
    assert verdicts(root) == {11: 0}
    ben.answer(11, "dog", "ben-00001")
    assert verdicts(root) == {}
    assert anna.read().disputes == {11: {"anna": "cat", "ben": "dog"}}
    assert (anna.progress().open, anna.progress().disputed, anna.progress().mine) == (3, 1, 1)
    assert FileExpert(root / "data/inputs/decisions.csv", pictures_of()).ask(pictures_of().ids) == {}
    cleo.answer(11, "dog", "cleo-0001")
    assert verdicts(root) == {11: 1}, "two of three"
    cleo.answer(11, None, "cleo-0002")
    anna.answer(11, "dog", "anna-0002")
    assert verdicts(root) == {11: 1}, "both"
    assert anna.read().disputes == {}


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, HEADER),
        ("", HEADER),
        ("id,label\n10,cat", HEADER + "10,cat\n"),
        (
            'label,remark,id\ncat,"a, b",10\n',
            'label,remark,id,expert,at,round,rows,why,trust,picture\ncat,"a, b",10\n',
        ),
        ("\ufeffid,label\r\n10,cat\r\n", HEADER + "10,cat\n"),
        ("id,label,expert,at\n10,cat,anna,2030-01-01", HEADER + "10,cat,anna,2030-01-01\n"),
        (HEADER + "10,cat,anna,2030-01-01,1,3,,,\n11,ca", HEADER + "10,cat,anna,2030-01-01,1,3,,,\n11,ca\n"),
        (
            'id,label,remark\n10,cat,"a\x85b\u2028c, d"\n',
            'id,label,remark,expert,at,round,rows,why,trust,picture\n10,cat,"a\x85b\u2028c, d"\n',
        ),
    ],
)
def test_an_append_keeps_what_people_wrote(tmp_path: Path, before: str | None, after: str) -> None:
    path = tmp_path / "inputs/decisions.csv"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before, newline="")
    append(path, [Decision(12, "dog", "ben", "2030-01-02", Asked(1, 40, "label disputed", 0.25, "c0ffee"))])
    text = path.read_text()
    assert text.startswith(after)
    first, *_, last = text.removesuffix("\n").split("\n")
    added = dict(zip(first.split(","), last.split(","), strict=True))
    said = {"id": "12", "label": "dog", "expert": "ben", "at": "2030-01-02", "remark": ""}
    said |= {"round": "1", "rows": "40", "why": "label disputed", "trust": "0.25", "picture": "c0ffee"}
    assert {**added, "remark": ""} == said


def test_pages_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("id,label\n")
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(path, name)) for name in ("anna", "ben", "cleo")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    votes = read_decisions(path).votes(CLASSES)
    assert votes == {row: {"anna": 0, "ben": 0, "cleo": 0} for row in range(30)}


def test_an_append_waits_for_another_page_that_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("id,label\n")
    writer = threading.Thread(target=append, args=(path, [Decision(11, "cat", "anna", "2030-01-01")]))
    with lock_of(path):
        writer.start()
        writer.join(0.3)
        assert path.read_text() == "id,label\n"
    writer.join()
    assert path.read_text() == HEADER + "11,cat,anna,2030-01-01,,,,,\n"


def _write_many(path: Path, expert: str) -> None:
    for row in range(30):
        append(path, [Decision(row, "cat", expert, "2030-01-01")])
