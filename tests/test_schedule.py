"""The schedule of review rounds: which round is next, how many rows it may show, when and why the rounds end."""

import numpy as np
import pandas as pd
import pytest

from decant.data.images import DatasetInfo, Images
from decant.labeltrust.experts import Oracle
from decant.labeltrust.review_rounds import EARLIER, UNASKED, Reviews, draw_references
from decant.labeltrust.schedule import Round, Schedule
from decant.labeltrust.settings import VerifySettings

LABELS = np.repeat([0, 1], 20)
IMAGES = Images(
    np.arange(40),
    np.zeros((40, 8, 8, 1), np.uint8),
    LABELS.astype(np.int32),
    DatasetInfo(class_names=("cat", "dog"), source="test", checksum="test"),
)
RIGHT = Oracle(IMAGES, pd.DataFrame({"id": [], "original_label": []}))


def schedule(**settings: object) -> Schedule:
    """After two references of each class, of two rounds of three rows per class."""
    planned = VerifySettings(**{"references": 2, "rounds": 2, "reviews": 3, **settings})  # type: ignore[arg-type]
    reviews = Reviews(IMAGES)
    draw_references(reviews, RIGHT, planned.references, np.random.default_rng(0), planned.budget)
    return Schedule(reviews, planned)


def show(planned: Schedule, rows: int, number: int, why: str = "") -> None:
    planned.reviews.ask(RIGHT, np.flatnonzero(planned.reviews.free)[:rows], number, why)


def test_rounds_follow_one_another_until_the_last() -> None:
    planned = schedule()
    assert planned.next_round(0, LABELS, None) == Round(1, rows=6, per_class=3)
    show(planned, 6, 1)
    assert planned.next_round(1, LABELS, None) == Round(2, rows=6, per_class=3)
    show(planned, 6, 2)
    assert planned.next_round(2, LABELS, None) is None and planned.why_stop(0.0) is None


def test_a_round_asked_in_part_asks_for_the_rest_and_one_that_waits_is_the_last() -> None:
    planned = schedule()
    show(planned, 4, 1)
    assert planned.next_round(0, LABELS, None) == Round(1, rows=2, per_class=1)
    planned.reviews.waiting[0] = True
    assert planned.next_round(0, LABELS, None) is None


@pytest.mark.parametrize(("budget", "per_class"), [(4, 0), (5, 0), (6, 1), (9, 2), (11, 3), (100, 3)])
def test_a_budget_is_shared_evenly_by_the_classes(budget: int, per_class: int) -> None:
    planned = schedule(budget=budget)  # four rows of it are references
    this = planned.next_round(0, LABELS, None)
    assert this is not None and this.per_class == per_class
    assert planned.why_stop(None) == (None if per_class else f"the budget of {budget} reviews is spent")


def test_rounds_end_where_few_errors_are_expected_unless_a_later_one_is_on_file() -> None:
    planned = schedule(stop_below=0.01)
    assert planned.why_stop(0.02) is None and planned.why_stop(None) is None
    stopped = planned.why_stop(0.001)
    assert stopped == "0.10% of the unreviewed rows are expected to be judged wrongly, less than 1.00%"
    assert planned.next_round(0, LABELS, stopped) is None
    show(planned, 6, 2)
    assert planned.next_round(0, LABELS, stopped) is not None, "its answers are learnt from"


def test_answers_given_before_they_were_asked_for_stand_for_rows_of_the_rounds() -> None:
    planned = schedule()
    show(planned, 9, 1, EARLIER)
    assert planned.next_round(0, LABELS, None) == Round(1, rows=0, per_class=0)
    assert planned.next_round(1, LABELS, None) == Round(2, rows=3, per_class=2)
    of_one_class = np.zeros(40, int)  # rounds of three rows per class can show no more than six of it
    assert planned.next_round(1, of_one_class, None) == Round(2, rows=0, per_class=0)


def test_nothing_can_be_judged_before_two_classes_have_two_references() -> None:
    assert not schedule(budget=3).can_judge
    assert schedule(budget=4).can_judge
    waiting = schedule()
    waiting.reviews.answers[waiting.reviews.references[:1]] = UNASKED
    waiting.reviews.waiting = waiting.reviews.rounds == 0
    assert not waiting.can_judge
