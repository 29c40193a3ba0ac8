"""Trusted experts: who tells the right label of the few rows that LabelTrust asks about.

Each row that an expert is shown takes a person's time, so every stage counts what it asked.

* `Oracle` simulates the expert in experiments: it knows a simulation's truth and answers for the rows it is shown.
* `FileExpert` is one person or several, through the file of their decisions (`decant.labeltrust.decisions`). It does
  not wait: rows without an answer, and rows about which the experts disagree, are queued for the next run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from jaxtyping import Int

from decant.data.images import Images
from decant.labeltrust.decisions import Asked, agreed, read_decisions


class Expert(Protocol):
    """Whoever can be asked for the right labels of rows."""

    def ask(self, ids: Int[np.ndarray, " r"]) -> dict[int, int]:
        """The right class of each row, or UNCLEAR, by its id; rows that are not answered yet are left out."""

    def on_file(self) -> dict[int, Asked]:
        """The rows that were asked about before this run, by id, and how each was asked.

        `ask` has no answer for those that are open again: the experts disagree, or have taken back their answer.
        """


class Oracle:
    """Answers from the truth, for rows that it is shown. Rows that the truth doesn't mention carry the right label."""

    def __init__(self, images: Images, truth: pd.DataFrame):
        self._labels = dict(zip(images.ids.tolist(), images.labels.tolist(), strict=True))
        self._labels |= dict(zip(truth["id"].tolist(), truth["original_label"].tolist(), strict=True))
        self.asked = 0
        """Rows shown so far; a row that is shown twice counts twice."""

    def ask(self, ids: Int[np.ndarray, " r"]) -> dict[int, int]:
        self.asked += len(ids)
        return {int(row): self._labels[int(row)] for row in ids}

    def on_file(self) -> dict[int, Asked]:
        return {}


class FileExpert:
    """Answers from a CSV of people's decisions; where the file is missing or empty, there are none.

    pictures: what every row shows now (`decant.data.tables.read_digests`); None: every answer counts.

    Raises: StageError when a column is missing, a label is no class, or a hand-written row has two different answers.
    """

    def __init__(self, path: Path, images: Images, pictures: Mapping[int, str] | None = None):
        present = set(images.ids.tolist())
        ever = read_decisions(path)
        counting = ever if pictures is None else ever.about(pictures.get)
        votes = {row: said for row, said in counting.votes(images.info.class_names).items() if row in present}
        self._answers = {row: answer for row, said in votes.items() if (answer := agreed(said)) is not None}
        asked = counting.asked()
        self._on_file = {row: asked.get(row, Asked()) for row in sorted(present & (votes.keys() | asked.keys()))}
        self.outdated = len((ever.rows() - counting.rows()) & present)
        """Rows that were answered only when they showed another picture than now."""

    def ask(self, ids: Int[np.ndarray, " r"]) -> dict[int, int]:
        return {int(row): self._answers[int(row)] for row in ids if int(row) in self._answers}

    def on_file(self) -> dict[int, Asked]:
        return self._on_file
