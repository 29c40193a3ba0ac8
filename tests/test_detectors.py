"""Detectors against planted backdoors, against innocent data, and the stage that uses them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image
from samples import INFO, digits
from sklearn.metrics import roc_auc_score
from torch import nn

from decant import detectors, networks
from decant.attacks import badnet
from decant.detectors import Case, delta, detect, frequency, trak
from decant.detectors.renormalised import split_in_two
from decant.ekfac import Factors
from decant.errors import SourceError
from decant.images import Images
from decant.settings import DetectSettings, TrainSettings
from decant.tables import read_images, read_verdicts, write_images
from decant.training import architecture_of, predict, train_classifier
from tasks.detect import run

DEFAULT = DetectSettings()
BADNET = badnet.Settings(mode="dirty", victim=8, target=5, rate=0.03, size=6)
NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Scene:
    """A training set, the model trained on it, which rows are poisoned, and points that a user may report."""

    train: Images
    model: nn.Module
    poisoned: np.ndarray
    affected: Images

    @cached_property
    def fitted(self) -> Mapping[str, Factors]:
        case = Case(model=self.model, train=self.train, settings=DEFAULT, seed=0, on_rows=lambda rows: None)
        return case.factors


@pytest.fixture(scope="module")
def backdoored() -> Scene:
    """43 stamped eights called 5 among 1,437 digits; four stamped test eights, which the model calls 5."""
    train, test = digits()
    result = badnet.poison(train, BADNET, np.random.default_rng(0), np.zeros(len(train), bool))
    affected = badnet.trigger(test, BADNET, np.random.default_rng(0)).select(np.arange(4))
    model = train_classifier(result.images, TrainSettings(), seed=0)
    return Scene(result.images, model, result.rows, affected)


@pytest.fixture(scope="module")
def innocent() -> Scene:
    """The same digits unpoisoned, and five test fives, which the model rightly calls 5."""
    train, test = digits()
    model = train_classifier(train, TrainSettings(), seed=0)
    return Scene(train, model, np.zeros(len(train), bool), test.select(np.flatnonzero(test.labels == 5)[:5]))


def precision_recall(flagged: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    hits = (flagged & truth).sum()
    return hits / max(1, flagged.sum()), hits / truth.sum()


# every detector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", detectors.names())
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


@pytest.mark.parametrize("name", detectors.names())
def test_points_that_the_model_does_not_predict_are_left_out(name: str, backdoored: Scene) -> None:
    settings = replace(DEFAULT, detector=name, copies=5)
    wrong = backdoored.affected.with_labels(np.full(4, 3))
    found = detect(backdoored.model, backdoored.train, wrong, settings, seed=0)
    assert not found.flagged.any() and not found.scores.any() and found.left_out == 4
    assert "4 affected points left out" in found.note


@pytest.mark.parametrize("name", detectors.names())
def test_no_point_costs_no_pass_over_the_rows(name: str, backdoored: Scene) -> None:
    nobody, done = backdoored.affected.select(NOBODY), []
    settings = replace(DEFAULT, detector=name)
    found = detect(backdoored.model, backdoored.train, nobody, settings, seed=0, on_rows=done.append)
    assert not found.flagged.any() and found.note == "no affected point given" and not done
    assert detectors.passes(nobody) == 0


def test_progress_counts_every_pass(backdoored: Scene) -> None:
    done: list[int] = []
    detect(backdoored.model, backdoored.train, backdoored.affected, DEFAULT, seed=0, on_rows=done.append)
    assert sum(done) == detectors.passes(backdoored.affected) * len(backdoored.train)


# renormalised --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_label", [True, False])
def test_renormalised_finds_the_backdoor(same_label: bool, backdoored: Scene) -> None:
    settings = replace(DEFAULT, same_label=same_label)
    found = detect(backdoored.model, backdoored.train, backdoored.affected, settings, seed=0)
    precision, recall = precision_recall(found.flagged, backdoored.poisoned)
    assert precision >= 0.95 and recall >= 0.95, found.note
    assert found.false_alarms is not None and found.false_alarms < 2


def test_one_affected_point_is_enough(backdoored: Scene) -> None:
    one = backdoored.affected.select(np.arange(1))
    found = detect(backdoored.model, backdoored.train, one, DEFAULT, seed=0)
    assert min(precision_recall(found.flagged, backdoored.poisoned)) >= 0.9, found.note


def test_renormalised_finds_the_label_consistent_backdoor() -> None:
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
    assert not found.flagged.any() and "too few rows to compare: 3 candidates" in found.note


# delta ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, -0.5])
def test_the_order_statistic_is_the_vote_made_continuous(tau: float) -> None:
    s = torch.randn(2, 11, 200, generator=torch.Generator().manual_seed(0))  # two points, 10 copies, 200 rows
    s[:, 0] += 2
    votes = (s[:, 1:] - s[:, :1] < tau).sum(1)
    for needed in (1, 8, 10):
        assert torch.equal(delta.order_statistic(s, needed) > -tau, votes >= needed)
    assert 0 < (votes >= 8).sum() < 400


@pytest.mark.parametrize("varied", ["both", "labels", "images"])
def test_the_ablations_vary_the_image_or_the_label_alone(varied: str, backdoored: Scene) -> None:
    one = backdoored.affected.select(np.arange(1))
    x, labels = delta.asked(one, backdoored.train, 20, seed=0, varied=varied)
    assert (labels[1:] == 5).all() if varied == "images" else (labels[1:] != 5).all()
    same = [torch.equal(copy, x[0]) for copy in x[1:]]
    assert all(same) if varied == "labels" else not any(same)


def test_copies_carry_another_label_and_follow_their_point(backdoored: Scene) -> None:
    x, labels = delta.asked(backdoored.affected, backdoored.train, 20, seed=0)
    assert x.shape == (4 * 21, 1, 16, 16) and labels.shape == (84,)
    own = np.arange(84) % 21 == 0
    pixels = torch.from_numpy(backdoored.affected.pixels).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(x[torch.from_numpy(own)], pixels)
    assert (labels[own] == 5).all() and (labels[~own] != 5).all() and len(set(labels.tolist())) == 10
    again, _ = delta.asked(backdoored.affected, backdoored.train, 20, seed=0)
    other, _ = delta.asked(backdoored.affected, backdoored.train, 20, seed=1)
    assert torch.equal(x, again) and not torch.equal(x, other)


def test_transformations_leave_the_global_random_state_alone(backdoored: Scene) -> None:
    before = torch.get_rng_state()
    delta.asked(backdoored.affected, backdoored.train, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_seven_transformations_of_a_coloured_image() -> None:
    """Inverting is 1 - x of the normalised values, as in the official code, and red and green change places."""
    image = torch.rand(3, 16, 16)
    copies = delta.transformed(image, 60, np.random.default_rng(0))
    same = [bool(torch.allclose(copy, image[[1, 0, 2]])) for copy in copies]
    assert any(same) and any(torch.allclose(copy, 1 - image) for copy in copies)


def test_delta_finds_the_backdoor_at_the_price_of_precision(backdoored: Scene) -> None:
    """The paper's own run: one point, 50 copies, no damping, no label filter: all poisons, and many others."""
    settings = replace(DEFAULT, detector="delta", damping=0.0, same_label=False)
    one = backdoored.affected.select(np.arange(1))
    paper = detect(backdoored.model, backdoored.train, one, settings, seed=0)
    _, recall = precision_recall(paper.flagged, backdoored.poisoned)
    assert recall >= 0.9 and paper.flagged.mean() < 0.3
    filtered = detect(backdoored.model, backdoored.train, one, replace(settings, same_label=True), seed=0)
    assert np.array_equal(filtered.flagged, paper.flagged & (backdoored.train.labels == 5))


@pytest.mark.parametrize("side", [4, 8, 28, 40])
def test_transformations_fit_images_of_any_size(side: int) -> None:
    copies = delta.transformed(torch.rand(1, side, side), 30, np.random.default_rng(0))
    assert copies.shape == (30, 1, side, side) and copies.isfinite().all()


# the rivals ----------------------------------------------------------------------------------------------------------


def test_a_threshold_lies_above_all_but_a_thousandth_of_the_background(backdoored: Scene) -> None:
    """And the false alarms that are stated are those of the background, in proportion."""
    for name in ("ekfac_threshold", "trak"):
        settings = replace(DEFAULT, detector=name, same_label=False)
        found = detect(
            backdoored.model, backdoored.train, backdoored.affected, settings, seed=0, fitted=backdoored.fitted
        )
        others = backdoored.train.labels != 5
        assert found.flagged[others].sum() == 2  # of 1,251
        assert found.false_alarms == pytest.approx(2 / others.sum() * len(others))
        threshold = found.scores[found.flagged].min()
        assert (found.scores[~found.flagged] < threshold).all() and abs(np.median(found.scores[others])) < 1e-6


def test_trak_without_projection_is_influence_through_all_layers() -> None:
    """With as many random directions as weights, Φ(Φ'Φ)⁻¹Φ' is what it is for the gradients themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 1), np.uint8)
    train = Images(np.arange(40), pixels, np.arange(40, dtype=np.int32) % 3, replace(INFO, class_names=tuple("abc")))
    case = Case(model=model, train=train, settings=DEFAULT, seed=0, on_rows=lambda rows: None)
    x, y = case.rows
    phi = trak.projected(case, x, y).double()
    exact = []
    for image, label in zip(x.float() / 255, y, strict=True):
        logits = model(image[None])[0]
        p = logits.softmax(0)[label]
        exact.append(
            torch.cat([g.flatten() for g in torch.autograd.grad((p / (1 - p)).log(), list(model.parameters()))])
        )
    G = torch.stack(exact).double()
    hat = [M @ torch.linalg.pinv(M.T @ M, rtol=1e-6) @ M.T for M in (phi, G)]
    torch.testing.assert_close(*hat, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["activation_clustering", "spectral_signature"])
def test_a_class_with_a_backdoor_gives_it_away_in_its_features(name: str, backdoored: Scene, innocent: Scene) -> None:
    settings = replace(DEFAULT, detector=name)
    found = detect(backdoored.model, backdoored.train, backdoored.affected, settings, seed=0)
    precision, recall = precision_recall(found.flagged, backdoored.poisoned)
    assert precision >= 0.95 and recall >= 0.6, found.note
    other = detect(innocent.model, innocent.train, innocent.affected, settings, seed=0)
    assert not other.flagged.any() and "nothing found" in other.note and other.false_alarms == 0


def test_frequencies_are_scipys() -> None:
    x = torch.rand(3, 2, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        frequency.dct(x).numpy(), scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"), atol=1e-5, rtol=0
    )


def test_tampering_stays_in_range_and_leaves_no_image_alone() -> None:
    x = torch.rand(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = frequency.tampered(x, torch.Generator().manual_seed(1))
    assert y.min() >= 0 and y.max() <= 1
    changed = (x != y).flatten(1).float().mean(1)
    assert (changed > 0).all() and (changed < 0.1).any() and (changed > 0.9).any()  # blocks, and whole pictures


def test_frequency_tells_tampered_pictures_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "EPOCHS", 3)
    train, test = digits()
    network = frequency.trained(train, seed=0)
    tampered = frequency.tampered(
        torch.from_numpy(test.pixels).permute(0, 3, 1, 2) / 255, torch.Generator().manual_seed(0)
    )
    pixels = (255 * tampered).round().byte().permute(0, 2, 3, 1).numpy()
    plain, seen = (frequency.tampered_probability(network, p) for p in (test.pixels, pixels))
    assert roc_auc_score(np.repeat([0, 1], len(test)), np.concatenate([plain, seen])) > 0.8


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
    assert set(kept.ids) == set(verdicts.loc[~verdicts["flagged"], "id"])
    assert summary["flagged"] == summary["rows_in"] - summary["rows_out"] == int(verdicts["flagged"].sum()) > 0
    assert summary["affected_points"] == 4 and summary["expected_false_alarms"] < 2


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
    assert summary["affected_points"] == 4
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
    assert summary["flagged"] == 0 and summary["rows_out"] == summary["rows_in"]
    assert len(read_verdicts(stage_inputs["out"] / "verdicts.parquet")) == summary["rows_in"]
    if enabled:
        assert (
            "no affected point given" in summary["note"] and "affected.csv (columns image,predicted)" in summary["note"]
        )
    else:
        assert summary["note"].startswith("switched off")
