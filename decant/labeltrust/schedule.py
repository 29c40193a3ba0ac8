"""The rounds of review after the first draw: which is next, how many rows it may show, when and why they end.

Rounds 1 to `verify.rounds` show `verify.reviews` rows for every class that has references enough. They end early when
`verify.budget` leaves less than one more row of every class, or when less than the share `verify.stop_below` of the
unreviewed rows is expected to be judged wrongly. A person answers between two runs, so a run may find answers of rounds
that an earlier run asked about ("on file"): such a round is learnt from even where no further row would be shown.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from decant.labeltrust.review_rounds import EARLIER, Reviews
from decant.labeltrust.scorer import MIN_REFERENCES
from decant.labeltrust.settings import VerifySettings


class Round(NamedTuple):
    """What one round may still show."""

    number: int
    rows: int
    """Rows that it has yet to ask about; 0: an earlier run asked about all."""
    per_class: int
    """Most rows of one class among them, as the budget allows."""


@dataclass(frozen=True)
class Schedule:
    """The rounds as the settings plan them, given what was asked so far."""

    reviews: Reviews
    settings: VerifySettings

    @property
    def judged(self) -> Int[np.ndarray, " judged"]:
        """Classes that have references enough to be compared with, ascending."""
        reviews = self.reviews
        counts = np.bincount(reviews.answers[reviews.references], minlength=reviews.images.classes)
        return np.flatnonzero(counts >= MIN_REFERENCES)

    @property
    def can_judge(self) -> bool:
        """Whether networks can be trained: at least two classes have references enough.

        While the expert may still answer about references, every class of the data must have enough: a network that
        doesn't know a class takes its rows for those of another.
        """
        judged, references_wait = self.judged, (self.reviews.waiting & (self.reviews.rounds == 0)).any()
        unknown = np.setdiff1d(self.reviews.images.labels, judged)
        return len(judged) >= 2 and not (references_wait and len(unknown) > 0)

    def next_round(self, last: int, suggested: Int[np.ndarray, " n"], stopped: str | None) -> Round | None:
        """The round after round `last`; None where the rounds are over, or wait for answers.

        suggested: the class that each row looks like. stopped: what `why_stop` said.
        """
        number = last + 1
        on_file = (self.reviews.rounds >= number).any()
        if number > self.settings.rounds or self.reviews.waiting.any() or (stopped and not on_file):
            return None
        rows = max(0, self._missing(number, suggested))
        classes = len(self.judged)
        return Round(number, rows, per_class=min(self._affordable(classes), -(-rows // classes)))

    def why_stop(self, expected_errors: float | None) -> str | None:
        """Why rounds that the settings plan are left out; None where none is.

        expected_errors: share of the rows without an answer that is expected to be judged wrongly; None: unknown.
        """
        classes = len(self.judged) if self.can_judge else self.reviews.images.classes
        if (self.reviews.rounds > 0).sum() >= self.settings.rounds * self.settings.reviews * classes:
            return None
        if self._affordable(classes) == 0:
            return f"the budget of {self.settings.budget} reviews is spent"
        limit = self.settings.stop_below
        if expected_errors is not None and expected_errors < limit:
            return (
                f"{expected_errors:.2%} of the unreviewed rows are expected to be judged wrongly, less than {limit:.2%}"
            )
        return None

    def _missing(self, number: int, suggested: Int[np.ndarray, " n"]) -> int:
        """Rows that the round has yet to ask about.

        Answers that were given before they were asked for count as rows of the rounds so far. These may have shown
        all rows of a small class, which then has fewer left than the settings ask for.
        """
        per_class = self.settings.reviews
        missing = self.reviews.missing(number, per_class * len(self.judged))
        if not (self.reviews.why == EARLIER).any():
            return missing
        in_rounds = self.reviews.rounds > 0
        candidates = suggested[in_rounds | ~self.reviews.reviewed]
        possible = int(np.bincount(candidates).clip(max=number * per_class).sum())
        return min(missing, possible - int(in_rounds.sum()))

    def _affordable(self, classes: int) -> int:
        """Rows per class that a round may show."""
        if self.settings.budget is None:
            return self.settings.reviews
        left = max(0, self.settings.budget - self.reviews.shown)
        return min(self.settings.reviews, left // classes)
