"""A review at one moment: the questions, what was answered, and what follows from both. Reads no file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from decant.labeltrust.decisions import Decisions, agreed, label_text, parse_label
from decant.review.queue import Question

AnswerChange = tuple[int, str | None, str | None]
"""(row, an expert's answer before, their answer after); None: no answer."""


@dataclass(frozen=True)
class ReviewProgress:
    """How many rows are answered, of how many. A row on which the experts disagree is not answered."""

    round: int
    round_answered: int
    round_asked: int
    answered: int
    """In all rounds, as is asked."""
    asked: int
    mine: int
    """Rows of the queue that this expert has answered."""
    open: int
    """Rows of the queue without an answer that stands."""
    disputed: int


@dataclass(frozen=True)
class ReviewState:
    """The contents of a review's files."""

    class_names: tuple[str, ...]
    questions: dict[int, Question]
    """The queue by row id, in its order."""
    decisions: Decisions
    """About the pictures that the queue shows, and about rows outside of the queue."""
    earlier_rounds: tuple[int, ...]
    """The round of every row that was answered and that `verify` has taken in."""
    version: str
    """Changes when `verify` has asked anew."""
    answers_version: str
    """Changes with every answer on file, whoever gave it."""

    @cached_property
    def votes(self) -> dict[int, dict[str, int]]:
        """Row to what each expert says. Raises StageError when the file of decisions has a mistake."""
        return self.decisions.votes(self.class_names)

    @cached_property
    def settled(self) -> set[int]:
        """Rows of the queue with an answer that stands."""
        return {row for row in self.questions if row in self.votes and agreed(self.votes[row]) is not None}

    @cached_property
    def disputes(self) -> dict[int, dict[str, str]]:
        """Rows of the queue on which the experts disagree: expert to label."""
        return {
            row: {expert: self.text(answer) for expert, answer in self.votes[row].items()}
            for row in self.questions
            if row in self.votes and row not in self.settled
        }

    def progress(self, expert: str) -> ReviewProgress:
        """How far the review is, and this expert in it."""
        number = max(
            (question.round for question in self.questions.values()), default=max(self.earlier_rounds, default=0)
        )
        here = {row for row, question in self.questions.items() if question.round == number}
        earlier = self.earlier_rounds.count(number)
        return ReviewProgress(
            round=number,
            round_answered=earlier + len(self.settled & here),
            round_asked=earlier + len(here),
            answered=len(self.earlier_rounds) + len(self.settled),
            asked=len(self.earlier_rounds) + len(self.questions),
            mine=sum(expert in self.votes.get(row, {}) for row in self.questions),
            open=len(self.questions) - len(self.settled),
            disputed=len(self.disputes),
        )

    def steps(self, expert: str) -> list[AnswerChange]:
        """What undo goes back over, the latest last.

        An answer that restores the one before was an undo itself: it removes the step that it undid and adds none.
        """
        steps: list[AnswerChange] = []
        for row, before, after in self._changes(expert):
            last = next((n for n in reversed(range(len(steps))) if steps[n][0] == row), None)
            if last is not None and steps[last][1] == after:
                del steps[last]
            else:
                steps.append((row, before, after))
        return steps

    def _changes(self, expert: str) -> Iterator[AnswerChange]:
        """Every line of the expert about a row of the queue that changed their answer."""
        standing: dict[int, str | None] = {}
        for line in self.decisions.lines:
            if line.expert != expert or line.id not in self.questions:
                continue
            said, before = self.parsed(line.label or None, line.id), standing.get(line.id)
            after = None if said is None else self.text(said)
            if after != before:
                yield line.id, before, after
            standing[line.id] = after

    def parsed(self, label: str | None, row: int) -> int | None:
        """The class of a label, or UNCLEAR; None for no label. Raises StageError for one that is no class."""
        return None if label is None else parse_label(label, self.class_names, where=f"row {row}")

    def text(self, answer: int) -> str:
        """The label to show and to write for a class, or for UNCLEAR."""
        return label_text(answer, self.class_names)
