"""LabelTrust on real digits: wrong labels are found, right ones left alone, and the expert has the last word."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import digits

from decant.attacks import badnet
from decant.data.images import Images
from decant.data.tables import apply_verdicts
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.review_rounds import DISPUTED, FIRST
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import verify

QUICK = VerifySettings(steps=40, rounds=1)
NOTHING_WRONG = pd.DataFrame({"id": [], "original_label": []})


def some_digits(rows: int) -> Images:
    train, _ = digits()
    return train.select(np.arange(rows))


def mislabelled(images: Images, rate: float) -> tuple[Images, pd.DataFrame, np.ndarray]:
    """(images, truth, (n,) bool which are wrong)"""
    rng = np.random.default_rng(7)
    wrong = np.zeros(len(images), bool)
    wrong[rng.permutation(len(images))[: round(rate * len(images))]] = True
    labels = np.where(wrong, (images.labels + rng.integers(1, 10, len(images))) % 10, images.labels)
    rows = {"id": images.ids[wrong], "attack": "planted", "original_label": images.labels[wrong]}
    return images.with_labels(labels), pd.DataFrame(rows), wrong


def judge(images: Images, truth: pd.DataFrame, settings: VerifySettings = QUICK) -> VerifyOutcome:
    return verify(images, Oracle(images, truth), settings, seed=0)


@pytest.fixture(scope="module")
def noisy() -> tuple[Images, pd.DataFrame, np.ndarray]:
    return mislabelled(some_digits(1000), 0.1)


@pytest.fixture(scope="module")
def outcome(noisy: tuple[Images, pd.DataFrame, np.ndarray]) -> VerifyOutcome:
    return judge(noisy[0], noisy[1], replace(QUICK, action="relabel", relabel_above=0.9))


def test_wrong_labels_are_found_and_right_ones_kept(
    noisy: tuple[Images, pd.DataFrame, np.ndarray], outcome: VerifyOutcome
) -> None:
    wrong, flagged = noisy[2], outcome.verdicts["flagged"].to_numpy()
    assert flagged[wrong].mean() > 0.85
    assert flagged[~wrong].mean() < 0.02
    score = outcome.verdicts["score"].to_numpy()
    assert np.median(score[wrong]) > 0.9
    assert np.median(score[~wrong]) < 0.1
    assert outcome.label_noise_rate == pytest.approx(0.1, abs=0.02)


def test_verdicts_say_what_a_row_looks_like(
    noisy: tuple[Images, pd.DataFrame, np.ndarray], outcome: VerifyOutcome
) -> None:
    _, truth, _ = noisy
    verdicts = outcome.verdicts.set_index("id")
    found = verdicts[verdicts["flagged"] & verdicts.index.isin(truth["id"])]
    right = truth.set_index("id").loc[found.index, "original_label"]
    assert (found["suggested_label"] == right).mean() > 0.9
    of_kept = verdicts.loc[~verdicts["flagged"], ["suggested_label", "suggested_trust"]]
    assert of_kept.isna().all(axis=None)
    sentence = r"looks like a \d \(trust [01]\.\d\d\), not a \d \(trust 0\.\d\d\)|the expert saw a \d"
    assert found["reason"].str.fullmatch(sentence + ".*").all()


def test_a_suggestion_is_as_often_right_as_its_trust_says(
    noisy: tuple[Images, pd.DataFrame, np.ndarray], outcome: VerifyOutcome
) -> None:
    images = noisy[0]
    refused = outcome.verdicts[outcome.verdicts["flagged"]].set_index("id")
    right = pd.Series(some_digits(len(images)).labels, index=images.ids)[refused.index]
    is_right = refused["suggested_label"].to_numpy() == right.to_numpy()
    trust = refused["suggested_trust"]
    assert trust.between(0, 1).all() and (trust + (1 - refused["score"]) <= 1 + 1e-5).all()
    assert is_right.mean() == pytest.approx(trust.mean(), abs=0.1)
    assert trust[is_right].mean() > trust[~is_right].mean()
    assert (refused["action"] == "relabel").equals(trust >= 0.9), "as `relabel_above` of this run says"
    seen = refused.index.isin(outcome.reviews["id"])
    assert seen.any() and (trust[seen] == 1).all()


def test_the_expert_has_the_last_word(noisy: tuple[Images, pd.DataFrame, np.ndarray], outcome: VerifyOutcome) -> None:
    _, truth, _ = noisy
    verdicts = outcome.verdicts.set_index("id").loc[outcome.reviews["id"]]
    is_wrong = np.isin(outcome.reviews["id"], truth["id"])
    assert (verdicts["flagged"].to_numpy() == is_wrong).all()
    assert (verdicts["score"].to_numpy() == is_wrong).all()
    assert (outcome.reviews["given"] == outcome.reviews["answer"]).to_numpy().tolist() == (~is_wrong).tolist()
    assert outcome.queue.empty
    assert outcome.reviews["round"].isin([0, 1]).all()
    assert (outcome.reviews["round"] == 1).sum() <= QUICK.reviews * 10


def test_clean_data_is_left_nearly_as_it_was() -> None:
    images, truth, _ = mislabelled(some_digits(600), 0.0)
    outcome = judge(images, truth)
    assert outcome.verdicts["flagged"].mean() <= 0.01
    assert outcome.label_noise_rate is not None
    assert outcome.label_noise_rate < 0.01


def test_relabelling_restores_labels(noisy: tuple[Images, pd.DataFrame, np.ndarray], outcome: VerifyOutcome) -> None:
    images, verdicts = noisy[0], outcome.verdicts
    counts = verdicts["action"].value_counts()
    assert counts["relabel"] > counts["drop"]
    assert counts["drop"] > 0  # where it is less sure what the row is
    mended = apply_verdicts(images, verdicts)
    originals = pd.Series(some_digits(len(images)).labels, index=images.ids)
    relabelled = verdicts.loc[verdicts["action"] == "relabel", "id"].to_numpy()
    assert (mended.labels == originals.loc[mended.ids].to_numpy())[np.isin(mended.ids, relabelled)].mean() > 0.9


def test_a_higher_threshold_refuses_more() -> None:
    images, truth, _ = mislabelled(some_digits(400), 0.1)
    kept = []
    for threshold in (0.01, 0.5, 0.99):
        settings = VerifySettings(mode="paper", steps=20, rounds=0, threshold=threshold)
        kept.append((~judge(images, truth, settings).verdicts["flagged"]).sum())
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[2]


def test_paper_mode_tells_wrong_from_right() -> None:
    images, truth, wrong = mislabelled(some_digits(600), 0.1)
    settings = VerifySettings(mode="paper", steps=150, references=20, rounds=0)
    outcome = judge(images, truth, settings)
    score = outcome.verdicts["score"].to_numpy()
    unseen = ~np.isin(images.ids, outcome.reviews["id"])
    pairs = score[wrong & unseen][:, None] - score[~wrong & unseen][None]
    assert ((pairs > 0) + 0.5 * (pairs == 0)).mean() > 0.85  # area under the ROC curve
    assert 0 <= score.min() <= score.max() <= 1


def test_without_any_answer_every_row_is_kept_and_the_first_questions_wait(tmp_path: Path) -> None:
    images = some_digits(200)
    outcome = verify(images, FileExpert(tmp_path / "decisions.csv", images), QUICK, seed=0)
    assert (outcome.verdicts["action"] == "keep").all()
    assert outcome.label_noise_rate is None
    assert len(outcome.queue) == 10 * QUICK.references
    assert outcome.reviews.empty


def test_a_person_answering_the_queue_ends_where_the_oracle_ends(tmp_path: Path) -> None:
    """Two rounds of answering the CSV, then nothing is open and the verdicts are as good."""
    images, truth, wrong = mislabelled(some_digits(400), 0.1)
    settings = VerifySettings(steps=15, rounds=1, references=4, reviews=2)
    oracle, decisions = Oracle(images, truth), tmp_path / "decisions.csv"
    decisions.write_text("id,label\n", encoding="utf-8")
    for _ in range(8):
        outcome = verify(images, FileExpert(decisions, images), settings, seed=0)
        if outcome.queue.empty:
            break
        answers = oracle.ask(outcome.queue["id"].to_numpy())
        with decisions.open("a", encoding="utf-8") as file:
            file.writelines(f"{row},{label}\n" for row, label in answers.items())
    assert outcome.queue.empty
    assert oracle.asked == len(outcome.reviews)
    assert (outcome.reviews["round"] == 1).sum() == 20
    flagged = outcome.verdicts["flagged"].to_numpy()
    assert flagged[wrong].mean() > 0.7
    assert flagged[~wrong].mean() < 0.05


def test_what_the_expert_cannot_tell_is_dropped(tmp_path: Path) -> None:
    images = some_digits(100)
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(f"id,label\n{images.ids[3]},unclear\n", encoding="utf-8")
    verdict = verify(images, FileExpert(decisions, images), QUICK, seed=0).verdicts.iloc[3]
    assert (verdict["action"], verdict["score"]) == ("drop", 0.5)
    assert "could not tell" in verdict["reason"]


def test_an_expert_who_saw_every_row_leaves_nothing_to_judge() -> None:
    train, _ = digits()
    rows = [np.flatnonzero(train.labels == label)[:8] for label in (0, 1)]
    outcome = judge(train.select(np.concatenate(rows)), NOTHING_WRONG, VerifySettings(steps=2, rounds=1))
    assert (outcome.verdicts["reason"] == "the expert confirmed the label").all()
    assert outcome.scorer is not None


def rare_nines() -> Images:
    """200 zeros, ones and twos, and three nines at the end."""
    train, _ = digits()
    few, nines = np.flatnonzero(train.labels < 3)[:200], np.flatnonzero(train.labels == 9)[:3]
    return train.select(np.concatenate([few, nines]))


def test_a_class_too_rare_to_judge_is_kept_and_named() -> None:
    """The budget pays for two references of each class but the last."""
    images = rare_nines()
    outcome = judge(images, NOTHING_WRONG, VerifySettings(steps=20, rounds=1, references=2, budget=7))
    verdicts = outcome.verdicts[-3:]
    assert (verdicts["action"] == "keep").all() and (verdicts["score"] == 0).all()
    reasons = sorted(verdicts["reason"])
    assert reasons == ["not judged: fewer than 2 references of 9"] * 2 + ["the expert confirmed the label"]
    assert not outcome.verdicts["suggested_label"].isin([9]).any()


def test_the_queue_suggests_nothing_for_a_row_whose_class_is_not_judged(tmp_path: Path) -> None:
    """Two experts disagree about a nine; of nines there is no reference, and no budget for one."""
    images = rare_nines()
    known = [row for label in range(3) for row in np.flatnonzero(images.labels == label)[:2]]
    lines = [f"{images.ids[row]},{images.labels[row]},anna,0,{FIRST}" for row in known]
    lines += [f"{images.ids[-1]},{label},{expert},1,{DISPUTED}" for label, expert in ((9, "anna"), (4, "ben"))]
    path = tmp_path / "decisions.csv"
    path.write_text("\n".join(["id,label,expert,round,why", *lines, ""]), encoding="utf-8")
    settings = VerifySettings(steps=20, rounds=1, references=2, budget=6)
    queue = verify(images, FileExpert(path, images), settings, seed=0).queue
    assert queue["id"].tolist() == [images.ids[-1]]
    assert queue[["suggested", "like_given", "like_suggested"]].to_numpy().tolist() == [["", "", ""]]
    assert queue["trust"].isna().all()


@pytest.mark.slow
def test_a_classifier_helps_where_few_steps_leave_the_network_weak() -> None:
    images, truth, wrong = mislabelled(some_digits(600), 0.3)
    found = []
    for classifier in (False, True):
        settings = VerifySettings(steps=5, references=5, rounds=0, classifier=classifier)
        outcome = judge(images, truth, settings)
        score = outcome.verdicts["score"].to_numpy()
        unseen = ~np.isin(images.ids, outcome.reviews["id"])
        pairs = score[wrong & unseen][:, None] - score[~wrong & unseen][None]
        found.append(((pairs > 0) + 0.5 * (pairs == 0)).mean())  # area under the ROC curve
    assert outcome.classifier_weight and outcome.classifier_weight > 0
    assert found[1] > max(0.9, found[0] + 0.02)
    assert outcome.label_noise_rate == pytest.approx(0.3, abs=0.05)


@pytest.mark.slow
def test_a_classifier_that_learnt_a_trigger_gets_no_weight() -> None:
    """It predicts the attacker's label of every triggered row, also of those that it did not train on."""
    images = some_digits(600)
    attack = badnet.Settings(mode="dirty", victim=None, target=0, rate=0.1, size=6)
    poisoned = badnet.poison(images, attack, np.random.default_rng(0), np.zeros(len(images), bool))
    truth = pd.DataFrame({"id": images.ids, "attack": "badnet", "original_label": images.labels})
    settings = VerifySettings(steps=40, rounds=0, classifier=True)
    outcome = judge(poisoned.images, truth, settings)
    assert outcome.classifier_weight == 0
    assert outcome.verdicts["flagged"].to_numpy()[poisoned.rows].mean() > 0.9
