"""Who knows the right label: the trusted experts that LabelTrust asks about a few rows.

An expert is asked row by row and pays with a person's time for each, so every stage counts what it asked.

* `Oracle` plays the expert in experiments: it knows a simulation's truth and answers for the rows that it is shown.
* `FileExpert` is one person or several, through a CSV that DVC tracks:
  ``id,label,expert,at,round,rows,why,trust,picture``. A row without an answer is not waited for: it goes to the queue
  of rows to answer next, and so does one about which the experts disagree.

The CSV is a log. Of what an expert says about a row the last line counts, and a line with a time (``at``) but a blank
label takes their answer back: this is how the review page appends. A line without a time was written by hand; there
``id,label`` is enough, a blank label is a row not answered yet, and two that contradict each other are a mistake. How a
row came to be asked about (`Asked`) stands beside the answer, so that a later run knows it, too. An answer is about a
picture: a line that names another one (``picture``) than its row shows now doesn't count.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from decant.errors import StageError
from decant.files import open_csv
from decant.images import NO_LABEL, Images, class_number, is_number

UNCLEAR = -1
"""The answer of an expert who can't tell what a row shows."""
DECISION_COLUMNS = ("id", "label", "expert", "at", "round", "rows", "why", "trust", "picture")
UNNAMED = ""
"""The expert of lines that name none."""
Shows = Callable[[int], str | None]
"""What the row with that id shows now; blank where that is not known, None where there is no such row."""


@dataclass(frozen=True)
class Asked:
    """How a row came to be asked about, as the queue said it; all blank where nobody knows."""

    round: int | None = None
    rows: int | None = None
    """That the round asked about in all."""
    why: str = ""
    trust: float | None = None
    """In the given label, before the answer."""
    picture: str = ""
    """That the row showed, as `decant.tables.read_digests` names it."""


class Expert(Protocol):
    def ask(self, ids: np.ndarray) -> dict[int, int]:
        """The right class of each row, or UNCLEAR; rows that are not answered yet are left out."""

    def on_file(self) -> dict[int, Asked]:
        """The rows that it has spoken of before this run, by id, and how each was asked. `ask` has no answer for those
        that are open again: the experts disagree, or have taken back what they said."""


class Oracle:
    """Answers from the truth, for rows that it is shown. Rows that the truth doesn't mention carry the right label."""

    def __init__(self, images: Images, truth: pd.DataFrame):
        self._labels = dict(zip(images.ids.tolist(), images.labels.tolist(), strict=True))
        self._labels |= dict(zip(truth["id"].tolist(), truth["original_label"].tolist(), strict=True))
        self.asked = 0
        """Rows shown to it so far; a row that is shown twice counts twice."""

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        self.asked += len(ids)
        return {int(row): self._labels[int(row)] for row in ids}

    def on_file(self) -> dict[int, Asked]:
        return {}


class FileExpert:
    """People's decisions from a CSV; a file that is missing or empty answers nothing.

    pictures: what every row shows now (`decant.tables.read_digests`); without, every answer counts.

    Raises: StageError when a column is missing, a label is no class, or a hand-written row has two different answers.
    """

    def __init__(self, path: Path, images: Images, pictures: Mapping[int, str] | None = None):
        present = set(images.ids.tolist())
        shows = None if pictures is None else pictures.get
        votes = read_votes(path, images.info.class_names, shows)
        votes = {row: said for row, said in votes.items() if row in present}
        self._answers = {row: answer for row, said in votes.items() if (answer := agreed(said)) is not None}
        asked = read_asked(path, shows)
        counting, ever = ({line.id for line in read_decisions(path, known)} for known in (shows, None))
        self.outdated = len((ever - counting) & present)
        """Rows that were spoken of when they showed another picture, and not since."""
        self._on_file = {row: asked.get(row, Asked()) for row in sorted(present & (votes.keys() | asked.keys()))}

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        return {int(row): self._answers[int(row)] for row in ids if int(row) in self._answers}

    def on_file(self) -> dict[int, Asked]:
        return self._on_file


# The file of decisions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """A line of the file of decisions."""

    id: int
    label: str
    """As written; blank: the expert's answer is taken back."""
    expert: str = UNNAMED
    at: str = ""
    """When, in ISO 8601; blank where a person wrote the line by hand."""
    asked: Asked = Asked()
    line: int = 0
    """Of the file, counted from 1."""


def agreed(votes: Mapping[str, int]) -> int | None:
    """The answer of all experts, or of more than half of them; None while they disagree."""
    answer, count = Counter(votes.values()).most_common(1)[0]
    return answer if 2 * count > len(votes) else None


def read_votes(path: Path, class_names: tuple[str, ...], shows: Shows | None = None) -> dict[int, dict[str, int]]:
    """Row id to what each expert says of it: a class or UNCLEAR. Rows without an answer are left out.

    shows: as in `read_decisions`.

    Raises: StageError, as FileExpert does.
    """
    votes: dict[int, dict[str, int]] = {}
    by_hand: dict[tuple[int, str], int] = {}
    for decision in read_decisions(path, shows):
        said, key = votes.setdefault(decision.id, {}), (decision.id, decision.expert)
        if not decision.label:
            said.pop(decision.expert, None)
            by_hand.pop(key, None)
            continue
        where = f"{path}, line {decision.line}"
        answer = parse_label(decision.label, class_names, where=where)
        if decision.at:
            by_hand.pop(key, None)
        elif by_hand.setdefault(key, answer) != answer:
            raise StageError(f"{where}: id {decision.id} is answered a second time, differently; keep one")
        said[decision.expert] = answer
    return {row: said for row, said in votes.items() if said}


def read_asked(path: Path, shows: Shows | None = None) -> dict[int, Asked]:
    """Row id to how it was asked, by the last line that says so; rows of which none does are left out.

    shows: as in `read_decisions`.
    """
    return {line.id: line.asked for line in read_decisions(path, shows) if line.asked != Asked()}


def read_decisions(path: Path, shows: Shows | None = None) -> list[Decision]:
    """Every line that says something: all but hand-written ones whose label is still blank.

    shows: a line that names another picture than its row shows now is left out: the data have changed since. Without
    it, every line counts.
    """
    if not path.is_file():
        return []
    with open_csv(path) as reader:
        lines = list(_decisions(path, reader))
    if shows is None:
        return lines
    return [line for line in lines if not line.asked.picture or shows(line.id) in ("", line.asked.picture)]


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


def parse_label(text: str, class_names: tuple[str, ...], *, where: str) -> int:
    """A class name, its number or `unclear`; a name wins where it looks like another class's number.

    Raises: StageError that begins with `where`.
    """
    if text not in class_names and text.lower() == "unclear":
        return UNCLEAR
    if (label := class_number(text, class_names)) != NO_LABEL:
        return label
    some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise StageError(f"{where}: one of {some} or 'unclear' expected, {text!r} found")


def label_text(answer: int, class_names: tuple[str, ...]) -> str:
    """What to write for an answer so that `parse_label` reads it back, whatever the classes are called."""
    words = ("unclear", "Unclear", "UNCLEAR") if answer == UNCLEAR else (class_names[answer], str(answer))
    return next(word for word in words if word == word.strip() and parse_label(word, class_names, where="") == answer)
