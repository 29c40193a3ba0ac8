"""The files of one review: read when they have changed, and appended to. A restart loses nothing.

While DVC runs the stage that asks, no answer is taken: DVC hashes the file of decisions after the stage has ended, and
would record as taken in what the stage never read.
"""

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import EllipsisType

from decant.data.tables import read_info
from decant.errors import StageError
from decant.labeltrust.decisions import UNNAMED, Decision, read_decisions
from decant.paths import DECISIONS, PURIFIED, QUEUE, REVIEWS
from decant.review.answers import append, now
from decant.review.queue import Question, read_queue, read_rounds
from decant.review.state import ReviewProgress, ReviewState
from decant.stage_locks import is_being_written

Version = tuple[int, ...]
"""Modification time in ns, size and inode of a file; empty where there is none."""


class Closed(Exception):
    """No questions at the moment: the stage that asks them is at work, or has not run yet."""


class Changed(Exception):
    """What the expert's answer is now; they saw another one, on a page that doesn't know of it."""


class NotAsked(Exception):
    """The row is not in the queue."""


@dataclass
class Store:
    """The files of a review, as one expert sees them."""

    class_names: tuple[str, ...]
    expert: str = UNNAMED
    queue_path: Path = QUEUE
    reviews_path: Path = REVIEWS
    decisions_path: Path = DECISIONS
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _taken: set[str] = field(default_factory=set)  # ids of answers

    def questions(self) -> dict[int, Question]:
        """The queue by row id, in its order. Raises Closed; StageError when it can't be read."""
        return _queue(self.queue_path, self._queue_version())

    def read(self) -> ReviewState:
        """The review as it is now. Raises Closed; StageError when one of the files can't be read."""
        files = (self.queue_path, self.reviews_path, self.decisions_path)
        return _state(self.class_names, files, (self._queue_version(), *map(_version, files[1:])))

    def progress(self) -> ReviewProgress:
        """How far the review is, and this expert in it. Raises Closed and StageError as `read` does."""
        return self.read().progress(self.expert)

    def answer(self, row: int, label: str | None, answer_id: str, *, before: str | EllipsisType | None = ...) -> bool:
        """Takes an answer, or takes it back (None). False when it was taken before and nothing is left to write.

        before: the answer that the expert saw when they gave this one; left out, whatever stands is replaced.

        Raises: NotAsked, Closed, Changed where `before` doesn't stand, StageError for a label that is no class.
        """
        with self._lock:
            state = self.read()
            question = state.questions.get(row)
            if question is None:
                raise NotAsked(row)
            said, standing = state.parsed(label, row), state.votes.get(row, {}).get(self.expert)
            is_new = answer_id not in self._taken and said != standing
            if is_new and before is not ... and state.parsed(before, row) != standing:
                raise Changed("taken back" if standing is None else state.text(standing))
            if is_new:
                text = "" if said is None else state.text(said)
                append(self.decisions_path, [Decision(row, text, self.expert, now(), question.asked)])
            self._taken.add(answer_id)
            return is_new

    def _queue_version(self) -> Version:
        found = _version(self.queue_path)
        if not found or is_being_written(self.queue_path.parent):
            raise Closed
        return found


def open_store(expert: str = UNNAMED) -> Store:
    """The review of the current workspace. Raises StageError when there are no images yet."""
    if not PURIFIED.is_file():
        raise StageError("no rows to review yet; `verify` asks for them: decant run verify")
    return Store(read_info(PURIFIED).class_names, expert)


def _version(path: Path) -> Version:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=4)
def _queue(path: Path, version: Version) -> dict[int, Question]:
    """The queue, read once for each version of its file."""
    return read_queue(path)


@lru_cache(maxsize=4)
def _state(class_names: tuple[str, ...], files: tuple[Path, ...], versions: tuple[Version, ...]) -> ReviewState:
    """The state, computed once for each version of the queue, the reviews of earlier runs and the decisions."""
    (queue, reviews, decisions), (asked, _, answered) = files, versions
    questions = _queue(queue, asked)
    return ReviewState(
        class_names,
        questions,
        read_decisions(decisions).about(lambda row: questions[row].picture if row in questions else ""),
        tuple(read_rounds(reviews)),
        version=f"{asked[0]:x}-{asked[1]:x}",
        answers_version=str(answered),
    )
