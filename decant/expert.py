"""Who knows the right label: the trusted expert that LabelTrust asks about a few rows.

An expert is asked row by row and pays with a person's time for each, so every stage counts what it asked.

* `Oracle` plays the expert in experiments: it knows a simulation's truth and answers for the rows that it is shown.
* `FileExpert` is a person, through a CSV that DVC tracks: ``id,label``, where label is a class name, its number, or
  ``unclear``. A row without an answer is not waited for: it goes to the queue of rows to answer next.
"""

import csv
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from decant.errors import StageError
from decant.images import Images

UNCLEAR = -1
"""The answer of an expert who can't tell what a row shows."""


class Expert(Protocol):
    def ask(self, ids: np.ndarray) -> dict[int, int]:
        """The right class of each row, or UNCLEAR; rows that are not answered yet are left out."""

    def answered(self) -> np.ndarray:
        """Ids of rows that it has answered before anyone asked, (m,) int64 ascending."""


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

    def answered(self) -> np.ndarray:
        return np.empty(0, np.int64)


class FileExpert:
    """A person's decisions from a CSV; a file that is missing or empty answers nothing.

    Raises: StageError when a column is missing, a label is no class, or a row has two different answers.
    """

    def __init__(self, path: Path, images: Images):
        self._answers: dict[int, int] = {}
        present = set(images.ids.tolist())
        for line, row_id, text in _decisions(path):
            answer = _parse(text, images.info.class_names, where=f"{path}, line {line}")
            if self._answers.setdefault(row_id, answer) != answer:
                raise StageError(f"{path}, line {line}: id {row_id} is answered a second time, differently; keep one")
        self._answers = {row_id: answer for row_id, answer in self._answers.items() if row_id in present}

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        return {int(row): self._answers[int(row)] for row in ids if int(row) in self._answers}

    def answered(self) -> np.ndarray:
        return np.array(sorted(self._answers), np.int64)


def _decisions(path: Path) -> list[tuple[int, int, str]]:
    """(line, id, label) of every answered line; lines whose label is still blank are skipped."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None:
            return []
        for column in ("id", "label"):
            if column not in reader.fieldnames:
                raise StageError(f"{path}: column {column!r} expected, {', '.join(reader.fieldnames)} found")
        found = []
        for row in reader:
            text = (row["label"] or "").strip()
            if text and not (row["id"] or "").strip().isdecimal():
                raise StageError(f"{path}, line {reader.line_num}: a row's id expected, {row['id']!r} found")
            if text:
                found.append((reader.line_num, int(row["id"]), text))
        return found


def _parse(text: str, class_names: tuple[str, ...], *, where: str) -> int:
    """A class name, its number or `unclear`; a name wins where it looks like another class's number."""
    if text in class_names:
        return class_names.index(text)
    if text.lower() == "unclear":
        return UNCLEAR
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise StageError(f"{where}: one of {some} or 'unclear' expected, {text!r} found")
