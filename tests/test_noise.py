"""The noise-transition model against planted noise: it must find what was planted, and nothing where nothing was."""

import numpy as np
import pytest

from decant.noise import OPINION_SHARES, NoiseModel, best_share, fit, softmax, standing_for_all

CLASSES = 5
NOBODY_LOOKED = np.zeros((CLASSES, CLASSES))


def pictures(rng: np.random.Generator, n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and honest logits about them: each true label is drawn from softmax(logits)."""
    logits = sharpness * rng.standard_normal((n, CLASSES))
    cumulative = softmax(logits).cumsum(1)
    true = (rng.random(n)[:, None] > cumulative).sum(1).clip(max=CLASSES - 1)
    return true, logits


def mislabel(true: np.ndarray, transition: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(true))[:, None] > transition[true].cumsum(1)).sum(1).clip(max=CLASSES - 1)


def test_softmax_of_an_impossible_class_is_zero() -> None:
    assert softmax(np.array([[0.0, -np.inf, 0.0]])).tolist() == [[0.5, 0.0, 0.5]]


def test_em_recovers_a_planted_transition_matrix() -> None:
    rng = np.random.default_rng(0)
    transition = 0.85 * np.eye(CLASSES) + 0.15 * np.roll(np.eye(CLASSES), 1, axis=1)  # every class to the next one
    transition[0] = [0.6, 0.1, 0.1, 0.1, 0.1]
    true, logits = pictures(rng, 8000, sharpness=6)
    model = fit(logits, mislabel(true, transition, rng), NOBODY_LOOKED)
    assert np.abs(model.transition - transition).max() < 0.04
    assert model.noise_rate == pytest.approx(1 - np.diag(transition)[true].mean(), abs=0.02)


def test_logits_three_times_too_bold_are_cooled() -> None:
    rng = np.random.default_rng(1)
    true, logits = pictures(rng, 6000, sharpness=5)
    given = mislabel(true, 0.9 * np.eye(CLASSES) + 0.02, rng)
    assert fit(3 * logits, given, NOBODY_LOOKED).temperature == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("boldness", [1.0, 2.5])
def test_clean_labels_are_not_called_wrong(boldness: float) -> None:
    """The network is wrong on a tenth of these rows; that must not pass for label noise, however bold it is."""
    rng = np.random.default_rng(2)
    true, logits = pictures(rng, 3000, sharpness=8)
    assert 0.05 < (logits.argmax(1) != true).mean() < 0.2
    model = fit(boldness * logits, true, NOBODY_LOOKED)
    trust = model.posterior(boldness * logits, true)[np.arange(3000), true]
    assert model.noise_rate < 0.01
    assert (trust < 0.5).mean() < 0.005


def test_reviews_of_an_expert_move_the_estimate() -> None:
    """With pictures that say nothing, what the expert found is all that there is to know."""
    given = np.arange(200) % CLASSES
    silent = np.zeros((200, CLASSES))
    clean = fit(silent, given, 50 * np.eye(CLASSES)).noise_rate
    noisy = fit(silent, given, 30 * np.eye(CLASSES) + 5 * (1 - np.eye(CLASSES))).noise_rate
    assert clean < 0.05
    assert noisy > 0.2


def test_without_any_row_the_expert_is_all_that_there_is_to_go_by() -> None:
    seen = 30 * np.eye(CLASSES) + 5 * (1 - np.eye(CLASSES))
    model = fit(np.empty((0, CLASSES), np.float32), np.empty(0, np.int64), seen)
    assert model.temperature == pytest.approx(1)
    assert model.noise_rate == pytest.approx(20.5 / 51.5)  # of every class 30 right and 20 wrong, 1 and .5 by the prior


def test_posterior_is_bayes_rule() -> None:
    joint = np.array([[0.45, 0.05], [0.1, 0.4]])
    model = NoiseModel(joint=joint, temperature=1.0)
    q = np.array([[0.2, 0.8]])
    found = model.posterior(np.log(q), np.array([0]))
    weights = np.array([0.2 * 0.45, 0.8 * 0.1])
    np.testing.assert_allclose(found[0], weights / weights.sum())


def test_trust_is_a_probability_that_comes_true() -> None:
    rng = np.random.default_rng(3)
    true, logits = pictures(rng, 8000, sharpness=3)
    given = mislabel(true, 0.75 * np.eye(CLASSES) + 0.05, rng)
    trust = fit(logits, given, NOBODY_LOOKED).posterior(logits, given)[np.arange(8000), given]
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
        inside = (trust >= low) & (trust < high)
        assert (given == true)[inside].mean() == pytest.approx(trust[inside].mean(), abs=0.05)


def test_a_classifier_is_heard_as_far_as_it_knows_something() -> None:
    """Its opinion is worth little, much, or all beside logits that are sharp, blunt or silent."""
    rng = np.random.default_rng(4)
    true, logits = pictures(rng, 1500, sharpness=5)
    given = mislabel(true, 0.7 * np.eye(CLASSES) + 0.06, rng)
    guesses = rng.standard_normal((1500, CLASSES))
    shares = [
        best_share(mine, np.log(softmax(other)), given, NOBODY_LOOKED)
        for mine, other in ((logits, guesses), (logits + 4 * guesses, logits), (guesses, logits))
    ]
    assert shares[0] <= 0.25 < shares[1]
    assert shares[2] == OPINION_SHARES[-1]


def test_reviewed_rows_stand_for_all_rows_of_their_given_label() -> None:
    reviewed = np.array([[8.0, 1.0], [2.0, 4.0]])
    scaled = standing_for_all(reviewed, np.repeat([0, 1], [100, 20]))
    assert scaled.tolist() == [[80.0, 4.0], [20.0, 16.0]]
    assert standing_for_all(np.zeros((2, 2)), np.array([0, 1])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
