"""Signs of shortcuts: found where one was planted, not on clean, mislabelled or backdoored digits."""

import numpy as np
import pytest
from samples import digits
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.purify.gate import (
    RowScorer,
    amplified,
    features,
    margin,
    pattern_scores,
    probe_gap,
    reliance,
    ridge,
    row_threshold,
)

LSP = {"name": "lsp", "strength": 24, "patch": 4}


def poisoned(images: Images, entry: dict[str, object]) -> tuple[Images, np.ndarray]:
    (attack,) = load_attacks([entry])
    result = attack.poison(images, np.random.default_rng(0), np.zeros(len(images), bool))
    return result.images, result.rows


def smoothed(images: Images, clean: Images) -> Images:
    """What a good purification would leave: the clean image, a little blurred, with Gaussian noise."""
    noise = np.random.default_rng(1).normal(0, 12, clean.pixels.shape)
    soft = (clean.pixels + np.roll(clean.pixels, 1, 1).astype(float) + np.roll(clean.pixels, 1, 2)) / 3 + noise
    return images.with_pixels(np.clip(np.rint(soft), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (LSP, True),
        ({"name": "ops"}, True),
        (None, False),
        ({"name": "label_noise", "rate": 0.2}, False),
        ({"name": "badnet", "mode": "dirty", "rate": 0.05}, False),
    ],
)
def test_reliance_tells_unlearnable_examples_from_the_rest(entry: dict[str, object] | None, found: bool) -> None:
    train, _ = digits()
    received = poisoned(train, entry)[0] if entry else train
    test = reliance(received, smoothed(received, train), seed=0)
    assert test.found is found, str(test)


@pytest.mark.parametrize(
    ("entry", "found"), [({**LSP, "strength": 48}, True), (None, False), ({"name": "label_noise", "rate": 0.3}, False)]
)
def test_probe_gap_compares_with_clean_rows(entry: dict[str, object] | None, found: bool) -> None:
    train, test = digits()
    received = poisoned(train, entry)[0] if entry else train
    test = probe_gap(received, test.select(np.arange(150)), seed=0)
    assert test.found is found, str(test)


def test_rows_that_carry_a_perturbation_score_higher() -> None:
    train, _ = digits()
    received, rows = poisoned(train, {**LSP, "rate": 0.5})
    scores = RowScorer.fit(received, x3 := smoothed(received, train), seed=0)(received, x3)
    assert roc_auc_score(rows, scores) > 0.9
    again = RowScorer.fit(received, x3, seed=0)(received, x3)
    assert (again == scores).all()


def test_a_row_is_scored_by_a_model_that_was_not_trained_on_it() -> None:
    """With labels drawn at random nothing can be predicted: a model that scored its own training rows would seem to."""
    train, _ = digits()
    random = train.with_labels(np.random.default_rng(0).integers(0, 10, len(train)))
    scores = RowScorer.fit(random, x3 := smoothed(random, train), seed=0)(random, x3)
    assert abs(scores.mean()) < 0.05


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    for d in (10, 90):  # fewer features than rows, and more
        x = rng.normal(size=(40, d)) + labels[:, None]
        peer = Ridge(alpha=0.5 * 40).fit(x, np.eye(3)[labels])
        np.testing.assert_allclose(ridge(x, labels, 3, 0.5), peer.coef_.T, rtol=1e-6, atol=1e-9)


def test_features_hold_the_difference_and_its_autocorrelation() -> None:
    train, _ = digits()
    few = train.select(np.arange(3))
    darker = few.with_pixels(few.pixels // 2)
    found = features(few, darker)
    residual = (few.pixels.astype(np.float32) - darker.pixels) / 255
    np.testing.assert_allclose(found[:, : residual[0].size], residual.reshape(3, -1), rtol=1e-6)
    right = (residual * np.roll(residual, 1, 2)).mean((1, 2, 3)) / (residual**2).mean((1, 2, 3))
    column = residual[0].size  # the first lag is one pixel to the right
    np.testing.assert_allclose(found[:, column], right, rtol=1e-3)


def test_margin_is_the_given_label_over_the_mean_of_the_rest() -> None:
    assert margin(np.array([[3.0, 1.0, 2.0]]), np.array([0])) == pytest.approx(3 - 1.5)


def test_threshold_parts_two_groups_and_leaves_one_whole() -> None:
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 0.1, 800), rng.normal(1, 0.1, 200)])
    assert 0.3 < row_threshold(two) < 0.7
    one = rng.normal(0.8, 0.1, 1000)
    assert (one >= row_threshold(one)).all()


def test_amplified_rows_carry_the_perturbation_rounded_and_clipped() -> None:
    few = digits()[0].select(np.arange(2))
    off = np.full(few.pixels.shape, 0.1, np.float16)
    expected = np.clip(few.pixels + 25.5, 0, 255)
    assert np.abs(amplified(few, off).pixels - expected).max() <= 0.51
    assert (amplified(few, 0 * off).pixels == few.pixels).all()


def test_a_network_that_knows_patterns_alone_finds_the_rows_that_carry_one() -> None:
    """Given the planted perturbation itself as p^, the paper's rule must find who carries it."""
    train, _ = digits()
    perturbed, _ = poisoned(train, {**LSP, "strength": 48})
    received, rows = poisoned(train, {**LSP, "strength": 48, "rate": 0.5})
    planted = (perturbed.pixels.astype(np.float32) - train.pixels) / 255
    # A carrier's p^ would double its perturbation; the network sees each pattern once, on the clean image.
    likely, hit = pattern_scores(received, np.where(rows[:, None, None, None], 0, planted), networks=1, seed=0)
    assert roc_auc_score(rows, likely) > 0.8
    assert hit[rows].mean() > 0.95 > hit[~rows].mean()
