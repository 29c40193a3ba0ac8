"""Whom the expert is shown: a budget holds, is spread evenly, and the rounds end when they can't help."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import digits

from decant.expert import FileExpert, Oracle
from decant.images import Images
from decant.labeltrust import Outcome, by_round
from decant.refeed import Reviews, draw_references
from decant.settings import VerifySettings

NOTHING_WRONG = pd.DataFrame({"id": [], "original_label": []})
QUICK = {"steps": 2, "references": 3, "reviews": 2, "rounds": 3}


def rows(n: int = 300) -> Images:
    return digits()[0].select(np.arange(n))


def outcomes(**settings: float) -> list[Outcome]:
    images = rows()
    expert = Oracle(images, NOTHING_WRONG)
    found = list(by_round(images, expert, VerifySettings(**{**QUICK, **settings}), seed=0))  # type: ignore[arg-type]
    assert expert.asked == len(found[-1].reviews)
    return found


@pytest.mark.parametrize(("budget", "per_class"), [(20, 2), (25, 2), (None, 3), (500, 3)])
def test_a_short_budget_gives_every_class_as_many_references(budget: int | None, per_class: int) -> None:
    reviews = Reviews(rows())
    draw_references(reviews, Oracle(reviews.images, NOTHING_WRONG), 3, np.random.default_rng(0), budget)
    counts = np.bincount(reviews.answers[reviews.references], minlength=10)
    assert counts.min() == per_class
    assert counts.sum() == min(budget or 30, 30)


def test_a_budget_does_not_change_who_is_drawn_first() -> None:
    drawn = []
    for budget in (20, None):
        reviews = Reviews(rows())
        draw_references(reviews, Oracle(reviews.images, NOTHING_WRONG), 3, np.random.default_rng(0), budget)
        drawn.append(set(reviews.references.tolist()))
    assert drawn[0] < drawn[1]


def test_rounds_end_with_the_budget_and_say_so() -> None:
    found = outcomes(budget=75)
    assert [len(outcome.reviews) for outcome in found] == [30, 50, 70]
    assert [outcome.stopped for outcome in found] == [None, None, "the budget of 75 reviews is spent"]


def test_the_last_round_shows_fewer_rows_where_the_budget_demands_it() -> None:
    assert [len(outcome.reviews) for outcome in outcomes(budget=60)] == [30, 50, 60]


def test_a_budget_that_suffices_changes_nothing() -> None:
    free, bound = outcomes(), outcomes(budget=1000)
    assert [len(outcome.reviews) for outcome in free] == [30, 50, 70, 90]
    assert [outcome.reliability and outcome.reliability["rows"] for outcome in free] == [None, 10, 20, 30]
    assert free[-1].stopped is bound[-1].stopped is None
    pd.testing.assert_frame_equal(free[-1].verdicts, bound[-1].verdicts, check_exact=True)


def test_rounds_end_when_no_review_could_gain_more_than_is_asked_for() -> None:
    (only,) = outcomes(stop_below=0.9)
    assert only.stopped is not None and only.stopped.endswith("expected to be judged wrongly, less than 90.00%")
    assert len(outcomes(stop_below=1e-9)) == 4


def test_a_person_is_asked_no_more_than_the_budget(tmp_path: Path) -> None:
    images, decisions = rows(), tmp_path / "decisions.csv"
    decisions.write_text("id,label\n", encoding="utf-8")
    settings = VerifySettings(**{**QUICK, "budget": 47})  # type: ignore[arg-type]
    for _ in range(6):
        *_, outcome = by_round(images, FileExpert(decisions, images), settings, seed=0)
        with decisions.open("a", encoding="utf-8") as file:
            file.writelines(f"{row},{given}\n" for row, given in outcome.queue[["id", "given"]].to_numpy())
    assert outcome.queue.empty
    assert len(outcome.reviews) == 40  # 30 references and one row per class; 7 more can't be shared out evenly
    assert outcome.stopped == "the budget of 47 reviews is spent"
