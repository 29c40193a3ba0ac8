"""The file of decisions: what its lines mean, whose answer stands, and how a mistake in it is named."""

from pathlib import Path

import pytest

from decant.errors import StageError
from decant.labeltrust.decisions import UNCLEAR, Asked, agreed, label_text, parse_label, read_decisions

NAMES = ("cat", "dog", "2")


def decisions(folder: Path, text: str) -> Path:
    path = folder / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_last_line_that_says_how_a_row_was_asked_counts(tmp_path: Path) -> None:
    lines = [
        "id,label,expert,at,round,rows,why,trust",
        "100,cat,anna,2030-01-01,0,,drawn,",
        "100,dog,ben,2030-01-02,2,50,label disputed,0.4",
        "100,dog,anna,,,,,",
        "101,cat,anna,2030-01-01,1,50,likely false refusal,0.9",
        "101,,anna,2030-01-02,,,,",
        "102,cat,anna,2030-01-01,,,,",
        "102,,anna,2030-01-02,,,,",
    ]
    found = read_decisions(decisions(tmp_path, "\n".join(lines)))
    disputed, refused = Asked(2, 50, "label disputed", 0.4), Asked(1, 50, "likely false refusal", 0.9)
    assert found.asked() == {100: disputed, 101: refused}, "102: nobody had asked"
    assert found.votes(NAMES) == {100: {"anna": 1, "ben": 1}}, "101 and 102: taken back"


@pytest.mark.parametrize(
    ("votes", "answer"),
    [([3], 3), ([3, 3], 3), ([3, 4], None), ([3, 3, 4], 3), ([3, 4, 5], None), ([3, 3, 4, 4], None), ([-1, -1, 2], -1)],
)
def test_more_than_half_decide(votes: list[int], answer: int | None) -> None:
    assert agreed({str(number): vote for number, vote in enumerate(votes)}) == answer


def test_two_hand_written_lines_of_two_experts_are_a_dispute_and_of_one_a_mistake(tmp_path: Path) -> None:
    path = decisions(tmp_path, "id,label,expert\n11,cat,anna\n11,dog,ben\n")
    assert read_decisions(path).votes(NAMES) == {11: {"anna": 0, "ben": 1}}
    path = decisions(tmp_path, "id,label,expert\n11,cat,anna\n11,dog,anna\n")
    with pytest.raises(StageError, match="line 3: id 11 is answered a second time, differently; keep one"):
        read_decisions(path).votes(NAMES)


@pytest.mark.parametrize(
    "names", [("cat", "dog"), ("1", "0"), ("unclear", "Unclear"), (" padded", "dog"), ("2", "x", "y")]
)
def test_every_answer_is_read_back_whatever_the_classes_are_called(names: tuple[str, ...]) -> None:
    for answer in (UNCLEAR, *range(len(names))):
        assert parse_label(label_text(answer, names).strip(), names, where="") == answer


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,answer\n100,cat\n", "column 'label' expected, id, answer found"),
        ("id,label\n100,cow\n", "line 2: one of cat, dog, 2 or 'unclear' expected, 'cow' found"),
        ("id,label\n100,7\n", "line 2: .*'7' found"),
        ("id,label\nx,cat\n", "line 2: a row's id expected, 'x' found"),
        (f"id,label\n100,{'7' * 5000}\n", "line 2: one of cat"),
        (f"id,label\n{'7' * 5000},cat\n", "line 2: a row's id expected"),
        ("id,label\n100,cat\n100,dog\n", "line 3: id 100 is answered a second time"),
        ("id,label,round\n100,cat,first\n", "line 2: round: a whole number or nothing expected, 'first' found"),
        ("id,label,rows\n100,cat,-1\n", "line 2: rows: .*'-1' found"),
        ("id,label,trust\n100,cat,90%\n", "line 2: trust: a number in 0-1 or nothing expected, '90%' found"),
        ("id,label,trust\n100,cat,7\n", "line 2: trust: .*'7' found"),
        ("id,label\n100,cat,,,dog,0,a line of the queue\n", "line 2: 2 columns expected, more found"),
    ],
)
def test_a_bad_decision_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(StageError, match=complaint):
        read_decisions(decisions(tmp_path, text)).votes(NAMES)


def test_decisions_that_a_spreadsheet_saved_otherwise_are_named(tmp_path: Path) -> None:
    for spoilt in (
        "id,label\n100,K\u00e4se\n".encode("latin-1"),
        "id,label\n".encode("utf-16"),
        b'id,label\n100,"a\0b"\n',
    ):
        path = tmp_path / "decisions.csv"
        path.write_bytes(spoilt)
        with pytest.raises(StageError, match=r"decisions\.csv"):
            read_decisions(path).votes(NAMES)
