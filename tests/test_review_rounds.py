"""Which rows the expert is shown: a budget holds, is spread evenly, and the rounds end when they can't help."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import digits

from benchmarks._labels import LABELTRUST
from decant.data.images import Images
from decant.labeltrust.decisions import DECISION_COLUMNS
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.review_rounds import DISPUTED, FIRST, RANDOM, REFUSED, Reviews, draw_references
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import by_round, steps_of

NOTHING_WRONG = pd.DataFrame({"id": [], "original_label": []})
QUICK = {"steps": 2, "references": 3, "reviews": 2, "rounds": 3}


def rows(n: int = 300) -> Images:
    return digits()[0].select(np.arange(n))


def outcomes(**settings: float) -> list[VerifyOutcome]:
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


def test_the_label_benchmarks_show_their_expert_350_rows_in_all() -> None:
    """As the issue's bars say: ten references of each of ten classes, and five loops of five."""
    for settings in (method.settings for method in LABELTRUST.values()):
        assert settings.budget == 350 == 10 * (settings.references + settings.rounds * settings.reviews)


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


def test_answers_on_file_are_at_the_cost_of_the_first_draw(tmp_path: Path) -> None:
    images, decisions = rows(), tmp_path / "decisions.csv"
    by_hand = images.ids[:12]
    decisions.write_text(
        "id,label\n" + "".join(f"{row},{label}\n" for row, label in zip(by_hand, images.labels, strict=False))
    )
    reviews = Reviews(images)
    draw_references(reviews, FileExpert(decisions, images), 3, np.random.default_rng(0), budget=20)
    shown = set(images.ids[reviews.rounds >= 0].tolist())
    assert len(shown) == 20 and shown >= set(by_hand.tolist())


def test_withheld_rows_are_never_shown() -> None:
    images = rows()
    withheld = np.arange(len(images)) % 3 == 0
    expert = Oracle(images, NOTHING_WRONG)
    settings = VerifySettings(**QUICK)  # type: ignore[arg-type]
    *_, outcome = by_round(images, expert, settings, seed=0, withheld=withheld)
    assert len(outcome.reviews) == 90
    assert not set(outcome.reviews["id"]) & set(images.ids[withheld].tolist())
    assert outcome.verdicts["score"].notna().all(), "but they are judged"


def test_nothing_is_expected_of_labels_that_nobody_can_judge() -> None:
    images = rows().with_labels(np.zeros(300, np.int64))
    settings = VerifySettings(**{**QUICK, "stop_below": 0.9})  # type: ignore[arg-type]
    *_, outcome = by_round(images, Oracle(images, NOTHING_WRONG), settings, seed=0)
    assert outcome.label_noise_rate is None and outcome.stopped is None
    (poor,) = outcomes(budget=10)
    assert poor.label_noise_rate is None and poor.stopped == "the budget of 10 reviews is spent"


# --- a person, who answers between two runs ---------------------------------------------------------------------------


def of_classes(*sizes: tuple[int, int]) -> Images:
    """So many digits of each class: (class, rows), ..."""
    labels = digits()[0].labels
    return digits()[0].select(np.concatenate([np.flatnonzero(labels == label)[:n] for label, n in sizes]))


class Person:
    """Answers what `verify` asks on the review page, which writes down how each row was asked."""

    def __init__(self, folder: Path, images: Images, settings: VerifySettings, seed: int = 0):
        self.path, self.images, self.settings, self.seed = folder / "decisions.csv", images, settings, seed
        self.path.write_text(",".join(DECISION_COLUMNS) + "\n", encoding="utf-8")

    def run(self) -> VerifyOutcome:
        *_, outcome = by_round(self.images, FileExpert(self.path, self.images), self.settings, seed=self.seed)
        return outcome

    def says(self, queue: pd.DataFrame, expert: str = "anna", label: str | None = None) -> None:
        """The given label, of every row of the queue, or another one."""
        said = queue.assign(label=label or queue["given"], expert=expert, at="2030-01-01").reindex(
            columns=list(DECISION_COLUMNS)
        )
        said.to_csv(self.path, mode="a", header=False, index=False)

    def until_nothing_is_open(self) -> VerifyOutcome:
        for _ in range(8):
            outcome = self.run()
            if outcome.queue.empty:
                return outcome
            self.says(outcome.queue)
        raise AssertionError(f"{len(outcome.queue)} rows are open still")


PERSONS = VerifySettings(steps=5, references=3, reviews=5, rounds=2)


def asked(outcome: VerifyOutcome) -> list[int]:
    """Rows of every round, answered or waiting."""
    return np.bincount(np.concatenate([outcome.reviews["round"], outcome.queue["round"]]).astype(int)).tolist()


def test_a_person_is_asked_as_many_rows_as_the_oracle_and_it_is_known_why(tmp_path: Path) -> None:
    person = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), PERSONS)
    outcome = person.until_nothing_is_open()
    assert asked(outcome) == [9, 15, 15]
    assert (outcome.reviews["why"] == FIRST).sum() == 9 and (outcome.reviews["why"] == REFUSED).sum() == 18
    drawn = outcome.reviews["why"] == RANDOM
    assert outcome.reliability is not None and outcome.reliability["rows"] == drawn.sum() > 0


@pytest.mark.parametrize(("budget", "shown", "rounds"), [(None, 39, 2), (30, 30, 2), (24, 24, 1)])
def test_a_persons_last_run_learns_as_much_as_the_oracles(
    tmp_path: Path, budget: int | None, shown: int, rounds: int
) -> None:
    settings = replace(PERSONS, steps=2, budget=budget)
    person, steps = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), settings), []
    person.until_nothing_is_open()
    for expert in (Oracle(person.images, NOTHING_WRONG), FileExpert(person.path, person.images)):
        steps.append(0)

        def step() -> None:
            steps[-1] += 1

        *_, outcome = by_round(person.images, expert, person.settings, seed=0, on_step=step)
        assert len(outcome.reviews) == shown and outcome.queue.empty
    assert steps == [steps_of(replace(settings, rounds=rounds), person.images)] * 2


def test_a_round_that_waits_for_answers_is_not_learnt_from(tmp_path: Path) -> None:
    person, steps = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), replace(PERSONS, steps=2)), []
    person.says(person.run().queue)
    expert = FileExpert(person.path, person.images)
    *_, outcome = by_round(person.images, expert, person.settings, seed=0, on_step=lambda: steps.append(0))
    assert len(outcome.queue) == 15
    assert len(steps) == steps_of(replace(person.settings, rounds=0), person.images)


def test_answers_count_the_same_under_another_seed(tmp_path: Path) -> None:
    person = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), PERSONS)
    before = person.until_nothing_is_open()
    person.seed = 1
    after = person.run()
    assert after.queue.empty
    pd.testing.assert_frame_equal(after.reviews, before.reviews)
    assert (after.label_noise_interval, after.reliability) == (before.label_noise_interval, before.reliability)


def test_a_round_that_was_answered_but_for_one_row_asks_for_one(tmp_path: Path) -> None:
    person = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), PERSONS)
    person.says(person.run().queue)
    queue = person.run().queue
    assert len(queue) == 15
    person.says(queue[1:])
    outcome = person.run()
    assert asked(outcome) == [9, 15] and len(outcome.queue) == 1
    assert asked(person.until_nothing_is_open()) == [9, 15, 15]


@pytest.mark.slow
def test_a_class_that_runs_out_of_rows_ends_its_rounds_for_a_person_as_for_the_oracle(tmp_path: Path) -> None:
    """Four rows of class 6, three of which are references; of ones and zeros there are enough."""
    images = of_classes((0, 60), (1, 60), (6, 4))
    oracle, settings = Oracle(images, NOTHING_WRONG), replace(PERSONS, steps=25)  # enough to know the last six
    outcomes = list(by_round(images, oracle, settings, seed=0))
    assert asked(outcomes[-1]) == [9, 11, 10]
    assert asked(Person(tmp_path, images, settings).until_nothing_is_open()) == [9, 11, 10]
    by_hand = Person(tmp_path, images, settings)
    by_hand.path.write_text("id,label\n", encoding="utf-8")
    for _ in range(6):
        outcome = by_hand.run()
        with by_hand.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{row},{given}\n" for row, given in outcome.queue[["id", "given"]].to_numpy())
    assert outcome.queue.empty and len(outcome.reviews) == oracle.asked


def test_a_round_without_a_row_left_is_done_without_training_again() -> None:
    images = of_classes((0, 6), (1, 6))
    settings = VerifySettings(steps=2, references=5, reviews=2, rounds=3)
    found = list(by_round(images, Oracle(images, NOTHING_WRONG), settings, seed=0))
    assert [len(outcome.reviews) for outcome in found] == [10, 12]


def test_a_dispute_waits_again_before_any_other_row_is_chosen(tmp_path: Path) -> None:
    person = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), PERSONS)
    person.says(person.run().queue)
    queue = person.run().queue
    person.says(queue)
    person.says(queue[:1], "ben", "0" if queue["given"][0] != "0" else "1")
    outcome = person.run()
    assert outcome.queue[["id", "round", "why"]].equals(queue[:1][["id", "round", "why"]])
    assert asked(outcome) == [9, 15]
    person.says(queue[:1], "ben")
    assert asked(person.until_nothing_is_open()) == [9, 15, 15]


def test_a_row_that_an_expert_took_back_waits_again(tmp_path: Path) -> None:
    person = Person(tmp_path, of_classes((0, 60), (1, 60), (6, 60)), PERSONS)
    person.says(person.run().queue)
    queue = person.run().queue
    person.says(queue)
    disputed = queue[queue["why"] == DISPUTED]
    taken_back = (disputed if len(disputed) else queue)[:1]
    person.says(taken_back, label=" ")
    assert person.run().queue["id"].tolist() == taken_back["id"].tolist()
