"""LabelTrust's dealings with its expert: which rows they are shown, in which round, and what they answered.

The first draw takes rows of every given label at random until enough are confirmed: these are the references, and an
unbiased look at the noise. The rounds of the refeed loop then show rows chosen by what the network makes of them,
balanced over the classes that it suggests:

* `REFUSED`: rows whose label the network shares, but with the least confidence. Once confirmed they are the references
  that save most rows from false refusal (measured on MNIST: twice as good as rows drawn at random);
* `DISPUTED`: rows whose label it disputes and whose trust is nearest to even;
* `RANDOM`: any row, to see what neither of these would show.

A budget counts every row that is shown, answered or not. A person answers between two runs, and not always all: rows
that they spoke of earlier keep their round and their reason, what is open among them waits again, and a round that was
left half answered asks for as many rows as are missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

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
    """All that the expert was shown, row by row of `images`. Filled by `draw_references` and `ask`."""

    images: Images
    withheld: np.ndarray | None = None
    """(n,) bool: rows that the expert is never shown, to measure on; None: no row."""
    answers: np.ndarray = field(init=False)  # (n,) int64: a class, UNCLEAR or UNASKED
    rounds: np.ndarray = field(init=False)  # (n,) int64: 0 for the first draw
    why: np.ndarray = field(init=False)  # (n,) object: the reason for showing the row
    waiting: np.ndarray = field(init=False)  # (n,) bool: shown, but not answered yet
    trusted: np.ndarray = field(init=False)  # (n,) float64: trust before the answer, of RANDOM rows; else NaN
    sizes: dict[int, int] = field(default_factory=dict)  # rows that each round asked about in all, where that is known

    def __post_init__(self) -> None:
        n = len(self.images)
        self.answers = np.full(n, UNASKED, np.int64)
        self.rounds = np.full(n, -1, np.int64)
        self.why = np.full(n, "", object)
        self.waiting = np.zeros(n, bool)
        self.trusted = np.full(n, np.nan)

    @property
    def free(self) -> np.ndarray:
        """(n,) bool: rows that may be shown next."""
        unseen = self.rounds < 0
        return unseen if self.withheld is None else unseen & ~self.withheld

    @property
    def reviewed(self) -> np.ndarray:
        return self.answers != UNASKED

    @property
    def references(self) -> np.ndarray:
        """Row numbers with a known class: confirmed rows, and refuted ones under the expert's label. The latter teach
        the network that whatever came with the wrong label (a trigger, class-wise noise) says nothing."""
        return np.flatnonzero(self.answers >= 0)

    @property
    def confirmed(self) -> np.ndarray:
        return self.answers == self.images.labels

    def ask(self, expert: Expert, rows: np.ndarray, number: int, why: str) -> None:
        """Shows rows to the expert; those that they don't answer wait."""
        found = expert.ask(self.images.ids[rows])
        answers = np.array([found.get(int(row_id), UNASKED) for row_id in self.images.ids[rows]], np.int64)
        self.answers[rows], self.rounds[rows], self.why[rows] = answers, number, why
        self.waiting[rows] = answers == UNASKED

    def left(self, budget: int | None) -> int | None:
        """How many more rows the expert may be shown; None: any number."""
        return None if budget is None else max(0, budget - int((self.rounds >= 0).sum()))

    def missing(self, number: int, per_round: int) -> int:
        """Rows that round `number` has yet to ask about. Of a round that nobody asked yet: as many as all rounds up to
        it should have asked about together."""
        if number in self.sizes:
            return self.sizes[number] - int((self.rounds == number).sum())
        return number * per_round - int((self.rounds > 0).sum())

    @property
    def first_draw(self) -> np.ndarray:
        """Row numbers, drawn at random given their label, with a known class: an unbiased look at the noise."""
        return np.flatnonzero((self.rounds == 0) & (self.answers >= 0))

    def first_draw_counts(self) -> np.ndarray:
        """(classes, classes) counts [true, given] of the first draw."""
        counts = np.zeros((self.images.classes, self.images.classes))
        np.add.at(counts, (self.answers[self.first_draw], self.images.labels[self.first_draw]), 1)
        return counts

    def table(self, rows: np.ndarray) -> pd.DataFrame:
        """id, given, answer, round, why of the rows that `rows` (n,) bool marks, in the order of the rounds."""
        names = np.array([*self.images.info.class_names, "", "unclear"], object)  # -2: not answered, -1: unclear
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

    Rows that wait for an answer are counted as if they would be confirmed. What an earlier first draw showed is part of
    this one, also where its seed was another; what the expert said about other rows is taken in afterwards, so that the
    draw stays random, but is at the budget's cost. A budget that doesn't suffice is spread evenly over the labels.
    """
    labels = reviews.images.labels
    _take_in(reviews, expert, first_draw=True)
    on_file = np.isin(reviews.images.ids, list(expert.on_file()))
    turns = np.bincount(labels[reviews.rounds == 0], minlength=reviews.images.classes)  # that labels have had
    decks = [rng.permutation(np.flatnonzero(labels == label)) for label in range(reviews.images.classes)]
    decks = [deck[reviews.free[deck]] for deck in decks]
    while True:
        hands = []
        for label, deck in enumerate(decks):
            hopeful = (labels == label) & (reviews.confirmed | reviews.waiting)
            missing = max(0, per_class - int(hopeful.sum()))
            hands.append(deck[:missing])
            decks[label] = deck[missing:]
        turn = np.concatenate([had + np.arange(len(hand)) for had, hand in zip(turns, hands, strict=True)])
        order, rows = np.argsort(turn, kind="stable"), np.concatenate(hands)
        left = reviews.left(budget)
        if left is not None:
            new = np.cumsum(~on_file[rows[order]])
            order = order[new <= left - (on_file & (reviews.rounds < 0)).sum()]
        if not len(order):
            break
        reviews.ask(expert, rows[np.sort(order)], 0, FIRST)
    _take_in(reviews, expert, first_draw=False)


def _take_in(reviews: Reviews, expert: Expert, *, first_draw: bool) -> None:
    """Shows the rows on file once more that were asked about in an earlier first draw, or all others."""
    ids, on_file = reviews.images.ids, expert.on_file()
    new = np.flatnonzero(np.isin(ids, list(on_file)) & (reviews.rounds < 0))
    rows = np.array([row for row in new if (on_file[int(ids[row])].why == FIRST) == first_draw], np.int64)
    for row in rows:
        asked = on_file[int(ids[row])]
        reviews.ask(expert, np.array([row]), *_round_and_reason(asked))
        if asked.round and asked.rows:
            reviews.sizes[asked.round] = max(asked.rows, reviews.sizes.get(asked.round, 0))
        if asked.why == RANDOM and asked.trust is not None:
            reviews.trusted[row] = asked.trust


def _round_and_reason(asked: Asked) -> tuple[int, str]:
    if asked.why == FIRST:
        return 0, FIRST
    return (asked.round, asked.why) if asked.round and asked.why else (1, EARLIER)


def chosen_rows(
    q: np.ndarray,
    trust: np.ndarray,
    reviews: Reviews,
    per_class: int,
    rng: np.random.Generator,
    shares: tuple[float, float] = SHARES,
) -> Iterator[tuple[np.ndarray, str]]:
    """Rows to review next, with the reason: at most `per_class` for every class that the network suggests.

    q: (n, classes) confidence by the picture alone; trust: (n,) in the given label; shares: of likely false refusals
    and of disputed rows, the rest is random.
    """
    suggested, confidence = q.argmax(1), q.max(1)
    agrees = suggested == reviews.images.labels
    refused, disputed = (round(share * per_class) for share in shares)
    if refused + disputed == per_class > 1:
        refused -= 1  # something random is in every round
    for label in range(q.shape[1]):
        free = (suggested == label) & reviews.free
        shared = np.flatnonzero(free & agrees)
        least_sure = shared[np.argsort(confidence[shared], kind="stable")][: POOL * refused]
        picked = rng.permutation(least_sure)[:refused]
        yield picked, REFUSED
        fought = np.flatnonzero(free & ~agrees)
        nearest = fought[np.argsort(np.abs(trust[fought] - 0.5), kind="stable")][:disputed]
        yield nearest, DISPUTED
        rest = np.setdiff1d(np.flatnonzero(free), np.concatenate([picked, nearest]))
        yield rng.permutation(rest)[: per_class - len(picked) - len(nearest)], RANDOM
