"""Confidence scorers: one contract for all, and each against its definition."""

from functools import cache

import numpy as np
import pytest
import torch
from samples import digits
from sklearn.metrics import roc_auc_score

from decant.confidence import base as confidence
from decant.confidence import confidnet, steep_slope, trust_score
from decant.confidence.base import ConfidenceCase
from decant.errors import SettingsError
from decant.models.settings import TrainSettings
from decant.models.training import predict, train_classifier

QUICK: dict[str, dict[str, object]] = {"labeltrust": {"steps": 30}}


@cache
def case() -> tuple[ConfidenceCase, np.ndarray]:
    """(a classifier that was trained too short, on digits; (m,) whether each of its predictions is right)."""
    train, test = digits()
    model = train_classifier(train, TrainSettings(epochs=2), seed=0)
    predicted = predict(model, test.pixels).argmax(1)
    references = np.concatenate([np.flatnonzero(train.labels == label)[:10] for label in range(10)])
    given = ConfidenceCase(
        classifier=model,
        train=train,
        references=references,
        answers=train.labels[references].astype(np.int64),
        pixels=test.pixels,
        predicted=predicted,
        seed=0,
    )
    return given, predicted == test.labels


@pytest.mark.parametrize("name", confidence.names())
def test_every_scorer_keeps_the_contract_and_tells_right_from_wrong(name: str) -> None:
    given, right = case()
    before = [parameter.clone() for parameter in given.classifier.parameters()]
    first = confidence.fit_and_score(name, given, **QUICK.get(name, {}))
    assert first.shape == given.predicted.shape and first.dtype == np.float32
    assert (first >= 0).all() and (first <= 1).all()
    assert all(torch.equal(*pair) for pair in zip(before, given.classifier.parameters(), strict=True))
    assert 5 < (~right).sum() < 100  # enough mistakes to judge by
    assert roc_auc_score(right, first) > 0.7


@pytest.mark.parametrize("name", ["confidnet", "steep_slope"])
def test_the_same_case_gives_the_same_scores(name: str) -> None:
    first, second = (confidence.fit_and_score(name, case()[0], epochs=1) for _ in range(2))
    assert np.array_equal(first, second)


def test_unknown_scorers_are_refused_in_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^confidence scorer: one of confidnet, .*, 'prayer' found$"):
        confidence.fit_and_score("prayer", case()[0])


def test_trust_score_is_the_ratio_of_distances_found_by_brute_force() -> None:
    given, _ = case()
    found = confidence.fit_and_score("trust_score", given, space="pixels", alpha=0.2, k=5)
    flat = given.train.pixels.reshape(len(given.train), -1) / 255.0
    dense = {}
    for label in range(10):
        rows = flat[given.train.labels == label]
        radius = np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), 1)[:, 5]  # [:, 0] is the row itself
        dense[label] = rows[np.argsort(radius, kind="stable")[: round(0.8 * len(rows))]]
    for row in range(0, len(found), 9):
        asked = given.pixels[row].reshape(-1) / 255.0
        distance = {label: np.linalg.norm(rows - asked, axis=1).min() for label, rows in dense.items()}
        own = distance.pop(int(given.predicted[row]))
        ratio = min(distance.values()) / own
        assert found[row] == pytest.approx(ratio / (1 + ratio), abs=2e-3)


def test_a_prediction_of_a_class_without_rows_has_no_trust() -> None:
    distances = np.array([[1.0, np.inf, 3.0], [1.0, np.inf, 3.0]])
    assert trust_score.trust(distances, np.array([1, 0])).tolist() == pytest.approx([0, 0.75])
    assert trust_score.trust(np.array([[1.0, np.inf]]), np.array([0])).tolist() == [1], "there is no other class"


def test_steep_slope_is_monotone_bounded_and_steeper_for_mistakes() -> None:
    z = torch.linspace(-50, 50, 201, dtype=torch.float64)
    right, wrong = (steep_slope.steep_slope(z, torch.full((201,), flag), 1.0, 3.0) for flag in (True, False))
    assert (right.diff() < 0).all() and (wrong.diff() > 0).all()
    assert right[100] == pytest.approx(1 - np.exp(-1)) and wrong[100] == pytest.approx(1 - np.exp(-3))  # at 0
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    assert steep_slope.steep_slope(far, far > 0, 1.0, 3.0).tolist() == pytest.approx([0, 0], abs=1e-6)
    worst = np.exp([3, 1]) - np.exp([-3, -1])
    assert steep_slope.steep_slope(far.flip(0), far > 0, 1.0, 3.0).tolist() == pytest.approx(worst.tolist(), rel=1e-6)
    assert right.min() > 0 and wrong.min() > 0


def test_confidnet_aims_at_the_probability_of_the_label() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]))
    assert np.allclose(confidnet.true_class_probability(logits, np.array([1, 1])), [0.2, 0.6])


def test_labeltrust_looks_neither_at_the_classifier_nor_at_its_training_rows() -> None:
    given, _ = case()
    blind = ConfidenceCase(
        classifier=torch.nn.Identity(),
        train=given.trusted,
        references=np.arange(len(given.references)),
        answers=given.answers,
        pixels=given.pixels[:50],
        predicted=given.predicted[:50],
        seed=0,
    )
    seeing = confidence.fit_and_score("labeltrust", given, steps=5)[:50]
    assert np.allclose(confidence.fit_and_score("labeltrust", blind, steps=5), seeing, atol=1e-6)
