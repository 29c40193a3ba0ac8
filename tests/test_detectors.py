"""Detectors against planted backdoors, against innocent data, and the stage that uses them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import INFO, digits
from scenes import BADNET, DEFAULT, Scene, precision_recall

from decant.attacks import badnet
from decant.data.images import Images
from decant.data.tables import read_images, read_verdicts, write_images
from decant.detectors import frequency, joint
from decant.detectors.base import names
from decant.detectors.detect import detect, passes
from decant.detectors.joint import MAJORITY, MINORITY, two_groups
from decant.detectors.renormalised import split_in_two
from decant.errors import SourceError
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, predict, train_classifier
from tasks.detect import run

NOBODY = np.zeros(0, np.int64)


# every detector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_contract_of_every_detector(name: str, backdoored: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "EPOCHS", 1)
    settings = replace(DEFAULT, detector=name, copies=5)
    first, again = (
        detect(backdoored.model, backdoored.train, backdoored.affected, settings, seed=1, fitted=backdoored.fitted)
        for _ in range(2)
    )
    assert first.scores.shape == first.flagged.shape == (len(backdoored.train),)
    assert first.scores.dtype == np.float32 and np.isfinite(first.scores).all()
    assert first.points == 4 and first.left_out == 0 and first.note and first.measure
    assert (backdoored.train.labels[first.flagged] == 5).all()  # same_label
    assert np.array_equal(first.scores, again.scores) and np.array_equal(first.flagged, again.flagged)
    if name != "frequency":  # which needs more than an epoch, and sees nothing in this patch; its direction: see below
        poisoned, clean = first.scores[backdoored.poisoned], first.scores[~backdoored.poisoned]
        assert np.median(poisoned) > np.median(clean)  # higher is more suspicious


@pytest.mark.parametrize("name", names())
def test_points_that_the_model_does_not_predict_are_left_out(name: str, backdoored: Scene) -> None:
    settings = replace(DEFAULT, detector=name, copies=5)
    wrong = backdoored.affected.with_labels(np.full(4, 3))
    found = detect(backdoored.model, backdoored.train, wrong, settings, seed=0)
    assert not found.flagged.any() and not found.scores.any() and found.left_out == 4
    assert "4 affected points left out" in found.note


@pytest.mark.parametrize("name", names())
def test_no_point_costs_no_pass_over_the_rows(name: str, backdoored: Scene) -> None:
    nobody, done = backdoored.affected.select(NOBODY), []
    settings = replace(DEFAULT, detector=name)
    found = detect(backdoored.model, backdoored.train, nobody, settings, seed=0, on_rows=done.append)
    assert not found.flagged.any() and found.note == "no affected point given" and not done
    assert passes(nobody) == 0


def test_progress_counts_every_pass(backdoored: Scene) -> None:
    done: list[int] = []
    detect(backdoored.model, backdoored.train, backdoored.affected, DEFAULT, seed=0, on_rows=done.append)
    assert sum(done) == passes(backdoored.affected) * len(backdoored.train)


# joint, the default --------------------------------------------------------------------------------------------------


def pairs(
    rng: np.random.Generator,
    own: tuple[float, float],
    other: tuple[float, float],
    other_features: float = 6.0,
    others: int = 60,
) -> tuple[np.ndarray, np.ndarray]:
    """Influence (200,) and features (200, 8) of rows and `others`: (mean, spread) of either's influence."""
    influence = np.concatenate([rng.normal(*own, 200 - others), rng.normal(*other, others)])
    features = rng.normal(0, 1, (200, 8))
    features[200 - others :, 0] += other_features
    return influence, features


def at(place: float) -> np.ndarray:
    """Features (1, 8) of a point: 0 is among the 140 rows, 6 among the 60."""
    return np.array([[place] + [0.0] * 7])


def test_joint_sees_a_weak_cause_that_influence_alone_does_not() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(0, 0.01, 2000)
    influence, features = pairs(rng, (0.08, 0.06), (0.24, 0.06))
    assert not split_in_two(influence, background, seed=0).is_real
    groups = two_groups(influence, features, background, at(6), seed=0)
    assert groups.is_clear and groups.share <= MINORITY
    assert np.array_equal(groups.upper > 0.5, np.arange(200) >= 140)


def test_joint_believes_two_groups_only_where_both_views_agree() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(0, 0.01, 2000)
    alike = pairs(rng, (0.08, 0.06), (0.08, 0.06))  # two clusters, as in any class, with one influence
    assert not two_groups(*alike, background, at(6), seed=0).is_clear
    blurred = pairs(rng, (0.08, 0.06), (0.24, 0.06), other_features=0)  # one cluster
    assert not two_groups(*blurred, background, at(0), seed=0).is_clear
    quiet = pairs(rng, (0.0, 0.01), (0.03, 0.01))  # no more influence than rows of other classes have
    assert not two_groups(*quiet, background, at(6), seed=0).is_clear
    real = pairs(rng, (0.08, 0.06), (0.24, 0.06))
    assert not two_groups(*real, background, at(0), seed=0).is_clear  # the point is not like them
    innocent = pairs(rng, (0.24, 0.06), (0.05, 0.06))  # a point of the larger group, which the poison is not behind
    assert two_groups(*innocent, background, at(0), seed=0).share > MAJORITY
    assert two_groups(np.full(200, 0.2), features=real[1], background=background, of_points=at(0), seed=0) is None


def test_half_of_a_class_is_the_cause_only_beyond_doubt() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(0, 0.01, 2000)
    for apart, doubted in ((6.0, True), (10.0, False)):
        influence, features = pairs(rng, (0.08, 0.06), (0.24, 0.06), other_features=apart, others=100)
        groups = two_groups(influence, features, background, at(apart), seed=0)
        assert groups.is_clear and groups.is_doubtful_half == doubted, groups.figures
        assert not split_in_two(influence, background, seed=0).is_real


def test_a_second_look_asks_the_suspected_rows_themselves(
    backdoored: Scene, innocent: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first look never suffices: the backdoor is found all the same, and innocent classes stay innocent."""
    monkeypatch.setattr(joint, "MIN_SEPARATION", 100.0)
    monkeypatch.setattr(joint.renormalised, "MIN_SEPARATION", 100.0)
    one = backdoored.affected.select(np.arange(1))
    found = detect(backdoored.model, backdoored.train, one, DEFAULT, seed=0, fitted=backdoored.fitted)
    assert min(precision_recall(found.flagged, backdoored.poisoned)) >= 0.95, found.note
    _, test = digits()
    for label in range(10):
        point = test.select(np.flatnonzero(test.labels == label)[:1])
        found = detect(innocent.model, innocent.train, point, DEFAULT, seed=0, fitted=innocent.fitted)
        assert not found.flagged.any(), found.note


def test_a_second_look_must_agree_with_the_first() -> None:
    def groups(upper: np.ndarray, separation: float = 8.0, **changes: float) -> joint.JointGroups:
        figures = {"height": 20.0, "remainder": 0.2} | changes
        return joint.JointGroups(upper=upper, separation=separation, holds_the_points=True, **figures)

    rows = np.arange(100)
    first = groups((rows < 20).astype(float), 4.5)
    assert not first.is_clear and first.deserves_second_look
    assert first.is_confirmed_by(groups((rows < 17).astype(float), 6.1))
    assert not first.is_confirmed_by(groups((rows < 10).astype(float)))  # half of them only
    assert not first.is_confirmed_by(groups((rows < 40).astype(float)))
    assert not first.is_confirmed_by(groups((rows < 20).astype(float), 5.9))
    assert not first.is_confirmed_by(groups((rows < 20).astype(float), remainder=0.6))
    assert not groups((rows < 20).astype(float), 4.0).deserves_second_look
    assert not groups((rows < 60).astype(float), 4.5).deserves_second_look


@pytest.mark.parametrize("copies", [(40, 20), (60,)])
def test_features_that_hardly_differ_are_no_error(copies: tuple[int, ...]) -> None:
    """A class of repeated pictures: fewer directions than components, or none at all."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(len(copies), 8)), copies, axis=0)
    influence = np.repeat(np.linspace(0, 0.5, len(copies)), copies) + rng.normal(0, 0.01, sum(copies))
    found = two_groups(influence, features, rng.normal(0, 0.01, 500), features[-1:], seed=0)
    if len(copies) == 1:
        assert found is None
    else:
        assert found is not None and np.array_equal(found.upper > 0.5, np.arange(60) >= 40)


def test_no_training_row_is_no_error(backdoored: Scene) -> None:
    found = detect(backdoored.model, backdoored.train.select(NOBODY), backdoored.affected, DEFAULT, seed=0)
    assert not len(found.flagged) and "no affected point to trace" in found.note


def test_points_of_the_innocent_majority_accuse_nobody(backdoored: Scene) -> None:
    """Rightly predicted fives, reported by mistake: their own group must not be taken for the cause."""
    _, test = digits()
    right = (predict(backdoored.model, test.pixels).argmax(1) == test.labels) & (test.labels == 5)
    points = test.select(np.flatnonzero(right)[:5])
    found = detect(backdoored.model, backdoored.train, points, DEFAULT, seed=0)
    assert found.points == 5 and not found.flagged.any(), found.note


# renormalised --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["joint", "renormalised"])
@pytest.mark.parametrize("same_label", [True, False])
def test_joint_and_renormalised_find_the_backdoor(same_label: bool, name: str, backdoored: Scene) -> None:
    settings = replace(DEFAULT, detector=name, same_label=same_label)
    found = detect(backdoored.model, backdoored.train, backdoored.affected, settings, seed=0)
    precision, recall = precision_recall(found.flagged, backdoored.poisoned)
    assert precision >= 0.95 and recall >= 0.95, found.note
    assert found.false_alarms is not None and found.false_alarms < 2


def test_one_affected_point_is_enough(backdoored: Scene) -> None:
    one = backdoored.affected.select(np.arange(1))
    found = detect(backdoored.model, backdoored.train, one, DEFAULT, seed=0)
    assert min(precision_recall(found.flagged, backdoored.poisoned)) >= 0.9, found.note


def test_the_label_consistent_backdoor_is_found() -> None:
    """Whose labels are right, so that no label check can see it."""
    train, test = digits()
    attack = replace(BADNET, mode="consistent", rate=0.05)
    result = badnet.poison(train, attack, np.random.default_rng(0), np.zeros(len(train), bool))
    affected = badnet.trigger(test, attack, np.random.default_rng(0)).select(np.arange(5))
    model = train_classifier(result.images, TrainSettings(), seed=0)
    found = detect(model, result.images, affected, DEFAULT, seed=0)
    assert min(precision_recall(found.flagged, result.rows)) >= 0.95, found.note


def test_rightly_predicted_points_accuse_nobody(innocent: Scene) -> None:
    """A mixture of two Gaussians would split any class; the guard must not let it."""
    found = detect(innocent.model, innocent.train, innocent.affected, DEFAULT, seed=0)
    assert found.points == 5 and not found.flagged.any() and "nothing found" in found.note


@pytest.mark.parametrize("scene", ["innocent", "backdoored"])
def test_natural_mistakes_accuse_nobody(scene: str, request: pytest.FixtureRequest) -> None:
    given: Scene = request.getfixturevalue(scene)
    _, test = digits()
    predicted = predict(given.model, test.pixels).argmax(1)
    mistaken = predicted != test.labels
    assert mistaken.any()
    points = test.with_labels(predicted).select(mistaken)
    found = detect(given.model, given.train, points, DEFAULT, seed=0)
    assert found.points == mistaken.sum() and not found.flagged.any(), found.note


def test_points_with_different_labels_are_judged_apart(backdoored: Scene) -> None:
    """A natural mistake reported together with the triggered images neither hides them nor is blamed on anybody."""
    _, test = digits()
    predicted = predict(backdoored.model, test.pixels).argmax(1)
    mistaken = np.flatnonzero((predicted != test.labels) & (predicted != 5))[:1]
    both = Images(
        np.arange(5),
        np.concatenate([backdoored.affected.pixels, test.pixels[mistaken]]),
        np.concatenate([backdoored.affected.labels, predicted[mistaken].astype(np.int32)]),
        INFO,
    )
    alone = detect(backdoored.model, backdoored.train, backdoored.affected, DEFAULT, seed=0)
    together = detect(backdoored.model, backdoored.train, both, DEFAULT, seed=0)
    assert np.array_equal(alone.flagged, together.flagged) and together.points == 5
    assert alone.note in together.note and "nothing found for the points predicted" in together.note
    assert alone.measure == together.measure == joint.MEASURE  # whichever way a class was decided


def test_the_guard_believes_two_groups_only_when_there_are_two() -> None:
    rng = np.random.default_rng(0)
    background = rng.normal(0, 0.01, 2000)
    unrelated, poisons = rng.normal(0.01, 0.01, 150), rng.normal(0.3, 0.04, 50)
    real = split_in_two(np.concatenate([unrelated, poisons]), background, seed=0)
    assert real.is_real and np.array_equal(real.upper > 0.5, np.arange(200) >= 150)
    assert not split_in_two(rng.normal(0.01, 0.01, 200), background, seed=0).is_real  # one group, in the background
    assert not split_in_two(rng.normal(0.3, 0.04, 200), background, seed=0).is_real  # one group, far from it
    related = np.concatenate([rng.normal(0.15, 0.02, 150), poisons])  # the class as such resembles the points
    assert not split_in_two(related, background, seed=0).is_real
    assert not split_in_two(np.full(20, 0.2), background, seed=0).is_real


def test_a_wide_upper_group_does_not_claim_the_lowest_scores() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([[-0.5], rng.normal(0, 0.01, 100), rng.normal(0.4, 0.2, 100)])
    assert split_in_two(scores, rng.normal(0, 0.01, 500), seed=0).upper[0] == 0


def test_a_class_too_small_to_compare_is_said_to_be(backdoored: Scene) -> None:
    few = np.flatnonzero((backdoored.train.labels != 5) | (np.cumsum(backdoored.train.labels == 5) <= 3))
    found = detect(backdoored.model, backdoored.train.select(few), backdoored.affected, DEFAULT, seed=0)
    assert not found.flagged.any() and "too few rows to compare, 3 candidates" in found.note


# the stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage_inputs(backdoored: Scene, tmp_path: Path) -> dict[str, Path]:
    write_images(tmp_path / "train.parquet", backdoored.train)
    write_images(tmp_path / "affected.parquet", backdoored.affected)
    networks.save(tmp_path / "model.safetensors", backdoored.model, architecture_of(backdoored.train, TrainSettings()))
    (tmp_path / "affected.csv").write_text("image,predicted\n")
    (tmp_path / "out").mkdir()
    return {
        "train": tmp_path / "train.parquet",
        "model": tmp_path / "model.safetensors",
        "affected": tmp_path / "affected.parquet",
        "own_affected": tmp_path / "affected.csv",
        "out": tmp_path / "out",
    }


def test_stage_drops_what_it_flags_and_judges_every_row(stage_inputs: dict[str, Path], backdoored: Scene) -> None:
    summary = run(seed=0, detect=DEFAULT, **stage_inputs)
    verdicts = read_verdicts(stage_inputs["out"] / "verdicts.parquet")
    kept = read_images(stage_inputs["out"] / "train.parquet")
    assert verdicts["id"].tolist() == backdoored.train.ids.tolist() and set(verdicts["stage"]) == {"detect"}
    assert (verdicts["action"] == np.where(verdicts["flagged"], "drop", "keep")).all()
    assert summary.measure == joint.MEASURE and len(set(verdicts["reason"])) == 2  # said once, not with every row
    assert set(kept.ids) == set(verdicts.loc[~verdicts["flagged"], "id"])
    assert summary.flagged == summary.rows_in - summary.rows_out == int(verdicts["flagged"].sum()) > 0
    assert summary.affected_points == 4 and summary.expected_false_alarms < 2


def test_the_users_own_points_come_first(stage_inputs: dict[str, Path], backdoored: Scene) -> None:
    """PNG files named in affected.csv, twice as large as the training images, give the same rows."""
    folder = stage_inputs["own_affected"].parent
    for row, pixels in enumerate(backdoored.affected.pixels[..., 0]):
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{row}.png")
    lines = "".join(f"{row}.png,5\n" for row in range(4))
    write_images(stage_inputs["affected"], backdoored.affected.select(NOBODY))
    stage_inputs["own_affected"].write_text("image,predicted\n" + lines)
    summary = run(seed=0, detect=DEFAULT, **stage_inputs)
    flagged = read_verdicts(stage_inputs["out"] / "verdicts.parquet")["flagged"].to_numpy()
    assert summary.affected_points == 4
    assert min(precision_recall(flagged, backdoored.poisoned)) >= 0.95


@pytest.mark.parametrize(
    ("csv", "says"),
    [
        ("image,predicted\nnone.png,5\n", r"affected.csv, line 2: .*none.png: .*[Nn]o such file"),
        ("image,predicted\n0.png,five\n", r"affected.csv, line 2: one of 0, 1, .* expected, 'five' found"),
        ("file,predicted\n0.png,5\n", r"affected.csv: column 'image' expected, file, predicted found"),
        ("", r"affected.csv: not a CSV file"),
    ],
)
def test_a_bad_list_of_points_is_named_by_its_line(csv: str, says: str, stage_inputs: dict[str, Path]) -> None:
    stage_inputs["own_affected"].write_text(csv)
    with pytest.raises(SourceError, match=says):
        run(seed=0, detect=DEFAULT, **stage_inputs)


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_to_trace_passes_the_rows_through(enabled: bool, stage_inputs: dict[str, Path]) -> None:
    if enabled:
        write_images(stage_inputs["affected"], read_images(stage_inputs["affected"]).select(NOBODY))
    summary = run(seed=0, detect=replace(DEFAULT, enabled=enabled), **stage_inputs)
    assert (stage_inputs["out"] / "train.parquet").read_bytes() == stage_inputs["train"].read_bytes()
    assert summary.flagged == 0 and summary.rows_out == summary.rows_in
    assert len(read_verdicts(stage_inputs["out"] / "verdicts.parquet")) == summary.rows_in
    if enabled:
        assert "no affected point given" in summary.note and "affected.csv (columns image,predicted)" in summary.note
    else:
        assert summary.note.startswith("switched off")
