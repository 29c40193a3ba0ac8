"""Which rows the expert is shown, in which round, and what they answered.

The first draw shows random rows of every given label until enough labels are confirmed: these rows are the references,
and as a random sample they tell without bias how many labels are wrong. The rounds of the refeed loop then show rows
chosen by the networks' judgement, balanced over the classes that it suggests:

* `REFUSED`: rows whose label agrees with the network, but with the least confidence. Once confirmed they are the
  references that save most rows from false refusal (measured on MNIST: twice as good as rows drawn at random);
* `DISPUTED`: rows whose label disagrees with it, those whose trust is nearest to 0.5;
* `RANDOM`: random rows, to find errors of a kind that neither of these would show.

A budget counts every row that is shown, answered or not. A person answers between two runs, and not always everything:
rows that were asked about in an earlier run keep their round and their reason, those without an answer go back into the
queue, and a round that was answered in part asks for as many rows as are missing. How many rounds there are and how
many rows each may show: `decant.labeltrust.schedule`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from decant.data.images import Images
from decant.labeltrust.decisions import Asked
from decant.labeltrust.experts import Expert

UNASKED = -2
FIRST, EARLIER = "drawn at random as a reference", "answered before it was asked for"
REFUSED, DISPUTED, RANDOM = "likely false refusal", "label disputed", "drawn at random"
SHARES = (0.6, 0.2)  # of refused and disputed rows among those of a round
POOL = 5  # likely false refusals are drawn from the POOL times as many least confident rows, for variety


@dataclass
class Reviews:
    """What the expert was shown and answered, row by row of `images`; filled by `draw_references` and `ask`."""

    images: Images
    withheld: Bool[np.ndarray, " n"] | None = None
    """Rows that the expert is never shown, to measure on; None: no row."""
    answers: Int[np.ndarray, " n"] = field(init=False)
    """A class, UNCLEAR or UNASKED."""
    rounds: Int[np.ndarray, " n"] = field(init=False)
    """The round that showed the row; 0: the first draw, -1: none yet."""
    why: np.ndarray = field(init=False)
    """(n,) object: the reason for showing the row."""
    waiting: Bool[np.ndarray, " n"] = field(init=False)
    """Shown, but not answered yet."""
    trust_before: Float[np.ndarray, " n"] = field(init=False)
    """Trust in the given label before the answer, of RANDOM rows; NaN elsewhere."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Rows that each round asked about in all, where that is known."""

    def __post_init__(self) -> None:
        n = len(self.images)
        self.answers = np.full(n, UNASKED, np.int64)
        self.rounds = np.full(n, -1, np.int64)
        self.why = np.full(n, "", object)
        self.waiting = np.zeros(n, bool)
        self.trust_before = np.full(n, np.nan)

    def ask(self, expert: Expert, rows: Int[np.ndarray, " r"], number: int, why: str) -> None:
        """Shows rows to the expert in that round; those that they don't answer wait."""
        found = expert.ask(self.images.ids[rows])
        answers = np.array([found.get(int(row_id), UNASKED) for row_id in self.images.ids[rows]], np.int64)
        self.answers[rows], self.rounds[rows], self.why[rows] = answers, number, why
        self.waiting[rows] = answers == UNASKED

    @property
    def free(self) -> Bool[np.ndarray, " n"]:
        """Rows that may be shown next."""
        unseen = self.rounds < 0
        return unseen if self.withheld is None else unseen & ~self.withheld

    @property
    def shown(self) -> int:
        """Rows shown so far, answered or not."""
        return int((self.rounds >= 0).sum())

    @property
    def reviewed(self) -> Bool[np.ndarray, " n"]:
        """Rows with an answer, `unclear` included."""
        return self.answers != UNASKED

    @property
    def confirmed(self) -> Bool[np.ndarray, " n"]:
        """Rows whose given label the expert saw, too."""
        return self.answers == self.images.labels

    @property
    def refuted(self) -> Bool[np.ndarray, " n"]:
        """Rows in which the expert saw another class than the given one."""
        return (self.answers >= 0) & ~self.confirmed

    @property
    def references(self) -> Int[np.ndarray, " r"]:
        """Row numbers with a known class: confirmed rows, and refuted ones under the expert's label.

        The latter teach the network that whatever came with the wrong label (a trigger, a class-wise perturbation)
        says nothing.
        """
        return np.flatnonzero(self.answers >= 0)

    @property
    def first_draw(self) -> Int[np.ndarray, " r"]:
        """Row numbers, drawn at random given their label, with a known class: a random sample of the label noise."""
        return np.flatnonzero((self.rounds == 0) & (self.answers >= 0))

    def first_draw_counts(self) -> Float[np.ndarray, "classes classes"]:
        """Counts [true, given] of the first draw."""
        counts = np.zeros((self.images.classes, self.images.classes))
        np.add.at(counts, (self.answers[self.first_draw], self.images.labels[self.first_draw]), 1)
        return counts

    def missing(self, number: int, per_round: int) -> int:
        """Rows that round `number` has yet to ask about.

        Of a round that has asked nothing yet: what all rounds up to it should have shown, minus what they have shown.
        """
        if number in self.sizes:
            return self.sizes[number] - int((self.rounds == number).sum())
        return number * per_round - int((self.rounds > 0).sum())

    def table(self, rows: Bool[np.ndarray, " n"]) -> pd.DataFrame:
        """id, given, answer, round, why of the rows that `rows` marks, in the order of the rounds."""
        names = np.array([*self.images.info.class_names, "", "unclear"], object)  # [UNASKED] and [UNCLEAR] are last
        frame = pd.DataFrame(
            {
                "id": self.images.ids[rows],
                "given": names[self.images.labels[rows]],
                "answer": names[self.answers[rows]],
                "round": self.rounds[rows],
                "why": self.why[rows],
            }
        )
        return frame.sort_values(["round", "why", "id"], ignore_index=True)


def draw_references(
    reviews: Reviews, expert: Expert, per_class: int, rng: np.random.Generator, budget: int | None = None
) -> None:
    """Shows random rows of every given label until `per_class` of them are confirmed, or no row or budget is left.

    Rows that wait for an answer are counted as if they would be confirmed. The first draw of an earlier run is part of
    this one, also where its seed was another. What the expert answered about other rows is read afterwards, so that the
    draw stays random, but counts towards the budget. A budget that doesn't suffice is spread evenly over the labels.
    """
    _read_answers(reviews, expert, first_draw=True)
    on_file = np.isin(reviews.images.ids, list(expert.on_file()))
    order = rng.permutation(len(reviews.images))
    while len(rows := _next_references(reviews, per_class, order)):
        if budget is not None:
            reserved = int((on_file & (reviews.rounds < 0)).sum())  # answers that are read after the draw
            rows = rows[np.cumsum(~on_file[rows]) <= budget - reviews.shown - reserved]
        if not len(rows):
            break
        reviews.ask(expert, rows, 0, FIRST)
    _read_answers(reviews, expert, first_draw=False)


def _next_references(reviews: Reviews, per_class: int, order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " r"]:
    """One row of each given label that lacks references, by the random order; of those labels only the ones with the
    fewest rows shown so far. Empty where every label has references enough, or no rows left."""
    labels, classes = reviews.images.labels, reviews.images.classes
    shown = np.bincount(labels[reviews.rounds == 0], minlength=classes)
    confirmed = np.bincount(labels[reviews.confirmed | reviews.waiting], minlength=classes)
    free = order[reviews.free[order]]
    free = free[confirmed[labels[free]] < per_class]
    lacking, first = np.unique(labels[free], return_index=True)
    least = shown[lacking] == shown[lacking].min(initial=len(labels))
    return free[first[least]]


def _read_answers(reviews: Reviews, expert: Expert, *, first_draw: bool) -> None:
    """Enters the rows on file into `reviews`: those of an earlier run's first draw, or all others."""
    ids, on_file = reviews.images.ids, expert.on_file()
    new = np.flatnonzero(np.isin(ids, list(on_file)) & (reviews.rounds < 0))
    for row in new:
        asked = on_file[int(ids[row])]
        if (asked.why == FIRST) != first_draw:
            continue
        reviews.ask(expert, np.array([row]), *_round_and_reason(asked))
        if asked.round and asked.rows:
            reviews.sizes[asked.round] = max(asked.rows, reviews.sizes.get(asked.round, 0))
        if asked.why == RANDOM and asked.trust is not None:
            reviews.trust_before[row] = asked.trust


def _round_and_reason(asked: Asked) -> tuple[int, str]:
    if asked.why == FIRST:
        return 0, FIRST
    return (asked.round, asked.why) if asked.round and asked.why else (1, EARLIER)


def chosen_rows(
    q: Float[np.ndarray, "n classes"],
    trust: Float[np.ndarray, " n"],
    reviews: Reviews,
    per_class: int,
    rng: np.random.Generator,
    shares: tuple[float, float] = SHARES,
) -> Iterator[tuple[Int[np.ndarray, " r"], str]]:
    """Rows to review next, with the reason: at most `per_class` for every class that the network suggests.

    q: confidence by the picture alone; trust: in the given label; shares: of likely false refusals and of disputed
    rows, the rest is random.
    """
    suggested, confidence = q.argmax(1), q.max(1)
    agrees = suggested == reviews.images.labels
    refused, disputed = (round(share * per_class) for share in shares)
    if refused + disputed == per_class > 1:
        refused -= 1  # every round has a random row
    for label in range(q.shape[1]):
        free = (suggested == label) & reviews.free
        agreeing = np.flatnonzero(free & agrees)
        least_confident = agreeing[np.argsort(confidence[agreeing], kind="stable")][: POOL * refused]
        likely_refused = rng.permutation(least_confident)[:refused]
        yield likely_refused, REFUSED
        disagreeing = np.flatnonzero(free & ~agrees)
        nearest_even = disagreeing[np.argsort(np.abs(trust[disagreeing] - 0.5), kind="stable")][:disputed]
        yield nearest_even, DISPUTED
        rest = np.setdiff1d(np.flatnonzero(free), np.concatenate([likely_refused, nearest_even]))
        yield rng.permutation(rest)[: per_class - len(likely_refused) - len(nearest_even)], RANDOM
