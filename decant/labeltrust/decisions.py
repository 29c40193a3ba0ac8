"""The file of decisions: people's answers about single rows, a CSV that DVC tracks.

``id,label,expert,at,round,rows,why,trust,picture``. The file is a log: of an expert's lines about a row the last one
counts, and a line with a time (``at``) but a blank label takes their answer back. The review page appends such lines.
A line without a time was written by hand: there ``id,label`` is enough, a blank label means that the row is not
answered yet, and two lines that contradict each other are an error. How the row came to be asked about (`Asked`) stands
beside the answer, so that a later run knows it, too. An answer is about a picture: a line that names another one
(``picture``) than its row shows now doesn't count.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from decant.data.images import NO_LABEL, class_number, is_number
from decant.errors import StageError
from decant.files import open_csv

UNCLEAR = -1
"""The answer of an expert who can't tell what a row shows."""
DECISION_COLUMNS = ("id", "label", "expert", "at", "round", "rows", "why", "trust", "picture")
UNNAMED = ""
"""The expert of lines that name none."""
Shows = Callable[[int], str | None]
"""The picture that the row with that id shows now; blank: not known, None: there is no such row."""


@dataclass(frozen=True)
class Asked:
    """How a row came to be asked about, as the queue said; blank where that is not known."""

    round: int | None = None
    rows: int | None = None
    """Rows that the round asked about in all."""
    why: str = ""
    """The reason for showing the row, as `decant.labeltrust.review_rounds` has it."""
    trust: float | None = None
    """Trust in the given label before the answer."""
    picture: str = ""
    """The picture that the row showed, as `decant.data.tables.read_digests` names it."""


@dataclass(frozen=True)
class Decision:
    """One line of the file of decisions."""

    id: int
    label: str
    """As written; blank: the expert takes their answer back."""
    expert: str = UNNAMED
    at: str = ""
    """When, in ISO 8601; blank where a person wrote the line by hand."""
    asked: Asked = Asked()
    number: int = 0
    """Of the line, counted from 1."""


@dataclass(frozen=True)
class Decisions:
    """The lines of the file, except hand-written ones whose label is still blank."""

    path: Path
    lines: tuple[Decision, ...]

    def about(self, shows: Shows) -> "Decisions":
        """The decisions without the lines that name another picture than their row shows now."""
        lines = (line for line in self.lines if not line.asked.picture or shows(line.id) in ("", line.asked.picture))
        return replace(self, lines=tuple(lines))

    def rows(self) -> set[int]:
        """Ids of the rows that some line is about."""
        return {line.id for line in self.lines}

    def votes(self, class_names: tuple[str, ...]) -> dict[int, dict[str, int]]:
        """Row id to each expert's answer: a class or UNCLEAR. Rows without an answer are left out.

        Raises: StageError for a label that is no class, and for a hand-written row with two different answers.
        """
        votes: dict[int, dict[str, int]] = {}
        by_hand: dict[tuple[int, str], int] = {}
        for line in self.lines:
            said, key = votes.setdefault(line.id, {}), (line.id, line.expert)
            if not line.label:
                said.pop(line.expert, None)
                by_hand.pop(key, None)
                continue
            where = f"{self.path}, line {line.number}"
            answer = parse_label(line.label, class_names, where=where)
            if line.at:
                by_hand.pop(key, None)
            elif by_hand.setdefault(key, answer) != answer:
                raise StageError(f"{where}: id {line.id} is answered a second time, differently; keep one")
            said[line.expert] = answer
        return {row: said for row, said in votes.items() if said}

    def asked(self) -> dict[int, Asked]:
        """Row id to how the row was asked about, by the last line that says so; other rows are left out."""
        return {line.id: line.asked for line in self.lines if line.asked != Asked()}


def read_decisions(path: Path) -> Decisions:
    """Read the file; no lines where it is missing or empty.

    Raises: StageError when a column is missing, or a value is not of its column's kind.
    """
    if not path.is_file():
        return Decisions(path, ())
    with open_csv(path) as reader:
        return Decisions(path, tuple(_decisions(path, reader)))


def _decisions(path: Path, reader: "csv.DictReader[str]") -> Iterator[Decision]:
    for column in ("id", "label"):
        if reader.fieldnames is not None and column not in reader.fieldnames:
            raise StageError(f"{path}: column {column!r} expected, {', '.join(reader.fieldnames)} found")
    for row in reader:
        row_id, label, expert, at, *asked = ((row.get(column) or "").strip() for column in DECISION_COLUMNS)
        if any(row.get(None) or []):
            columns = len(reader.fieldnames or ())
            raise StageError(
                f"{path}, line {reader.line_num}: {columns} columns expected, more found; of a line of the queue "
                "take only the id and the label"
            )
        if not (label or at):
            continue
        if not is_number(row_id):
            raise StageError(f"{path}, line {reader.line_num}: a row's id expected, {row['id']!r} found")
        how = _asked(*asked, where=f"{path}, line {reader.line_num}")
        yield Decision(int(row_id), label, expert, at, how, reader.line_num)


def _asked(number: str, rows: str, why: str, trust: str, picture: str, *, where: str) -> Asked:
    for column, text in (("round", number), ("rows", rows)):
        if text and not is_number(text):
            raise StageError(f"{where}: {column}: a whole number or nothing expected, {text!r} found")
    try:
        value = float(trust) if trust else None
    except ValueError:
        value = np.nan
    if value is not None and not 0 <= value <= 1:
        raise StageError(f"{where}: trust: a number in 0-1 or nothing expected, {trust!r} found")
    return Asked(int(number) if number else None, int(rows) if rows else None, why, value, picture)


def agreed(votes: Mapping[str, int]) -> int | None:
    """The answer of all experts, or of more than half of them; None while they disagree."""
    answer, count = Counter(votes.values()).most_common(1)[0]
    return answer if 2 * count > len(votes) else None


def parse_label(text: str, class_names: tuple[str, ...], *, where: str) -> int:
    """The class of a name, a number or `unclear`; a name wins where it looks like another class's number.

    Raises: StageError that begins with `where`.
    """
    if text not in class_names and text.lower() == "unclear":
        return UNCLEAR
    if (label := class_number(text, class_names)) != NO_LABEL:
        return label
    some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise StageError(f"{where}: one of {some} or 'unclear' expected, {text!r} found")


def label_text(answer: int, class_names: tuple[str, ...]) -> str:
    """The text of an answer that `parse_label` reads back, whatever the classes are called."""
    words = ("unclear", "Unclear", "UNCLEAR") if answer == UNCLEAR else (class_names[answer], str(answer))
    return next(word for word in words if word == word.strip() and parse_label(word, class_names, where="") == answer)
