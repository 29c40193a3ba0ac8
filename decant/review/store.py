"""What the review page knows and writes: the queue of questions, the answers on file, and how far everybody is.

Every answer is one line appended to the file of decisions, flushed to the disk before anyone is told that it was taken.
Nothing is kept in memory that a restart would lose. Several pages may write to one file at a time: an append holds a
lock on the folder. While DVC runs the stage that asks, no answer is taken: DVC hashes the file after the stage has
ended, and would record as taken in what the stage never read.
"""

import csv
import fcntl
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, TypeVar, cast

from decant.files import replacing
from decant.labeltrust.decisions import (
    DECISION_COLUMNS,
    UNNAMED,
    Decision,
    Decisions,
    agreed,
    label_text,
    parse_label,
    read_decisions,
)
from decant.paths import DECISIONS, QUEUE, REVIEWS
from decant.review.queue import Question, read_queue, read_rounds
from decant.stage_locks import is_being_written

Contents = TypeVar("Contents")


class Closed(Exception):
    """No questions at the moment: the stage that asks them is at work, or has not run yet."""


class Changed(Exception):
    """What the expert's answer is now; they saw another one, on a page that doesn't know of it."""


class NotAsked(Exception):
    """The row is not in the queue."""


@dataclass(frozen=True)
class Progress:
    """Answered of asked. A row on which the experts disagree is not answered."""

    round: int
    round_answered: int
    round_asked: int
    answered: int
    asked: int
    mine: int
    """Rows of the queue that this expert has answered."""
    open: int
    """Rows of the queue without an answer that stands."""
    disputed: int


@dataclass
class Store:
    """The files of one review, as one expert sees them. Raises Closed where the queue is missing."""

    class_names: tuple[str, ...]
    expert: str = UNNAMED
    queue_path: Path = QUEUE
    reviews_path: Path = REVIEWS
    decisions_path: Path = DECISIONS
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: set[str] = field(default_factory=set)  # ids of answers that were taken
    _cached: dict[Path, tuple[object, Any]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Changes when the stage has asked anew."""
        found = _signature(self.queue_path)
        if found is None or is_being_written(self.queue_path.parent):
            raise Closed
        return f"{found[0]:x}-{found[1]:x}"

    @property
    def answers(self) -> str:
        """Changes with every answer on file, whoever gave it."""
        return str(_signature(self.decisions_path))

    def questions(self) -> dict[int, Question]:
        """The queue by row id, in its order."""
        if _signature(self.queue_path) is None or is_being_written(self.queue_path.parent):
            raise Closed
        return self._read(self.queue_path, read_queue)

    def votes(self) -> dict[int, dict[str, int]]:
        """Row of the queue to what each expert says. Raises StageError when the file has a mistake."""
        return self._read(
            self.decisions_path,
            lambda path: self._decisions(path).votes(self.class_names),
            self.queue_path,
        )

    def _decisions(self, path: Path) -> Decisions:
        """What counts for the pictures that the queue shows; what rows outside of it show is not known here."""
        questions = self.questions()
        return read_decisions(path).about(lambda row: questions[row].picture if row in questions else "")

    def my_steps(self) -> list[tuple[int, str | None, str | None]]:
        """(row of the queue, this expert's answer before, the one after), the latest last: what undo goes back over.
        What restored the answer before was an undo itself, and leaves no step."""
        asked = self.questions()
        steps: list[tuple[int, str | None, str | None]] = []
        standing: dict[int, str | None] = {}
        for line in self._decisions(self.decisions_path).lines:
            if line.expert != self.expert or line.id not in asked:
                continue
            said, before = self._parsed(line.label or None, line.id), standing.get(line.id)
            label = None if said is None else label_text(said, self.class_names)
            if label == before:
                continue
            last = next((n for n in reversed(range(len(steps))) if steps[n][0] == line.id), None)
            if last is not None and steps[last][1] == label:
                del steps[last]
            else:
                steps.append((line.id, before, label))
            standing[line.id] = label
        return steps

    def answer(self, row: int, label: str | None, answer_id: str, *, before: str | EllipsisType | None = ...) -> bool:
        """Takes an answer, or takes it back (None). False when it was taken before and nothing is left to write.

        before: the answer that the expert saw when they gave this one; left out, whatever stands is replaced.

        Raises: NotAsked, Closed, Changed where `before` doesn't stand, StageError for a label that is no class.
        """
        with self._lock:
            question = self.questions().get(row)
            if question is None:
                raise NotAsked(row)
            said, standing = self._parsed(label, row), self.votes().get(row, {}).get(self.expert)
            is_new = answer_id not in self._seen and said != standing
            if is_new and before is not ... and self._parsed(before, row) != standing:
                raise Changed("taken back" if standing is None else label_text(standing, self.class_names))
            if is_new:
                text = "" if said is None else label_text(said, self.class_names)
                append(self.decisions_path, [Decision(row, text, self.expert, now(), question.asked)])
            self._seen.add(answer_id)
            return is_new

    def _parsed(self, label: str | None, row: int) -> int | None:
        return None if label is None else parse_label(label, self.class_names, where=f"row {row}")

    def progress(self) -> Progress:
        questions, votes, settled = self.questions(), self.votes(), self.settled()
        disputed = sum(row in votes and row not in settled for row in questions)
        earlier = self._read(self.reviews_path, read_rounds)
        number = max((question.round for question in questions.values()), default=max(earlier, default=0))
        here = {row for row, question in questions.items() if question.round == number}
        return Progress(
            round=number,
            round_answered=earlier.count(number) + len(settled & here),
            round_asked=earlier.count(number) + len(here),
            answered=len(earlier) + len(settled),
            asked=len(earlier) + len(questions),
            mine=sum(self.expert in votes.get(row, {}) for row in questions),
            open=len(questions) - len(settled),
            disputed=disputed,
        )

    def settled(self) -> set[int]:
        """Rows of the queue with an answer that stands."""
        votes = self.votes()
        return {row for row in self.questions() if row in votes and agreed(votes[row]) is not None}

    def disputes(self) -> dict[int, dict[str, str]]:
        """Rows of the queue on which the experts disagree: expert to label."""
        votes = self.votes()
        return {
            row: {expert: label_text(answer, self.class_names) for expert, answer in votes[row].items()}
            for row in self.questions()
            if row in votes and agreed(votes[row]) is None
        }

    def _read(self, path: Path, read: Callable[[Path], Contents], *others: Path) -> Contents:
        """A file's contents, read again only when it has changed, or one of the others."""
        signature = [_signature(file) for file in (path, *others)]
        if path not in self._cached or self._cached[path][0] != signature:
            self._cached[path] = (signature, read(path))
        return cast(Contents, self._cached[path][1])


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# Appending ------------------------------------------------------------------------------------------------------------


def append(path: Path, decisions: list[Decision]) -> None:
    """These lines more, on the disk when this returns. A file that lacks some of the columns gets them first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        columns = _with_columns(path)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writerows(asdict(decision) | asdict(decision.asked) for decision in decisions)
            file.flush()
            os.fsync(file.fileno())


def now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)  # a file that is new or was replaced must be found after a power cut, too
    finally:
        os.close(descriptor)


def _with_columns(path: Path) -> list[str]:
    """The file's columns, after those that are missing were added at the end of the first line, and a last line without
    an end was ended. All other lines stay as they are, also for Git, which keeps the lines of both sides."""
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    columns = header + [name for name in DECISION_COLUMNS if name not in header]
    if columns == header and text.endswith("\n"):
        return columns
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(line for line in lines if line)
        file.flush()
        os.fsync(file.fileno())
    return columns
