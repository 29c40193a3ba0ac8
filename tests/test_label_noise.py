"""The label-noise model against planted label noise: it finds what was planted, and nothing in clean labels."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score

from decant.labeltrust import label_noise
from decant.labeltrust.label_noise import CLASSIFIER_WEIGHTS, LabelNoiseModel, best_classifier_weight, fit

CLASSES = 5
NO_ANSWERS = np.zeros((CLASSES, CLASSES))


def pictures(rng: np.random.Generator, n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and honest logits about them: each true label is drawn from softmax(logits)."""
    logits = sharpness * rng.standard_normal((n, CLASSES))
    cumulative = softmax(logits, axis=1).cumsum(1)
    true = (rng.random(n)[:, None] > cumulative).sum(1).clip(max=CLASSES - 1)
    return true, logits


def mislabel(true: np.ndarray, transition: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(true))[:, None] > transition[true].cumsum(1)).sum(1).clip(max=CLASSES - 1)


def test_posterior_of_an_impossible_class_is_zero() -> None:
    model = LabelNoiseModel(joint=np.full((3, 3), 1 / 9), temperature=1.0)
    assert model.posterior(np.array([[0.0, -np.inf, 0.0]]), np.array([1])).tolist() == [[0.5, 0.0, 0.5]]


def test_em_recovers_a_planted_transition_matrix() -> None:
    rng = np.random.default_rng(0)
    transition = 0.85 * np.eye(CLASSES) + 0.15 * np.roll(np.eye(CLASSES), 1, axis=1)  # every class to the next one
    transition[0] = [0.6, 0.1, 0.1, 0.1, 0.1]
    true, logits = pictures(rng, 8000, sharpness=6)
    model = fit(logits, mislabel(true, transition, rng), NO_ANSWERS)
    assert np.abs(model.transition - transition).max() < 0.04
    assert model.noise_rate == pytest.approx(1 - np.diag(transition)[true].mean(), abs=0.02)


def test_temperature_of_logits_that_are_three_times_too_large() -> None:
    rng = np.random.default_rng(1)
    true, logits = pictures(rng, 6000, sharpness=5)
    given = mislabel(true, 0.9 * np.eye(CLASSES) + 0.02, rng)
    assert fit(3 * logits, given, NO_ANSWERS).temperature == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("overconfidence", [1.0, 2.5])
def test_clean_labels_are_not_called_wrong(overconfidence: float) -> None:
    """The network is wrong on a tenth of these rows; that is no label noise, however overconfident it is."""
    rng = np.random.default_rng(2)
    true, logits = pictures(rng, 3000, sharpness=8)
    assert 0.05 < (logits.argmax(1) != true).mean() < 0.2
    model = fit(overconfidence * logits, true, NO_ANSWERS)
    trust = model.posterior(overconfidence * logits, true)[np.arange(3000), true]
    assert model.noise_rate < 0.01
    assert (trust < 0.5).mean() < 0.005


def test_reviews_of_an_expert_move_the_estimate() -> None:
    """Where the logits hold no information, the noise rate follows the expert's counts."""
    given = np.arange(200) % CLASSES
    silent = np.zeros((200, CLASSES))
    clean = fit(silent, given, 50 * np.eye(CLASSES)).noise_rate
    noisy = fit(silent, given, 30 * np.eye(CLASSES) + 5 * (1 - np.eye(CLASSES))).noise_rate
    assert clean < 0.05
    assert noisy > 0.2


def test_without_any_row_the_estimate_is_the_experts_counts() -> None:
    seen = 30 * np.eye(CLASSES) + 5 * (1 - np.eye(CLASSES))
    model = fit(np.empty((0, CLASSES), np.float32), np.empty(0, np.int64), seen)
    assert model.temperature == pytest.approx(1)
    assert model.noise_rate == pytest.approx(20.5 / 51.5)  # of every class 30 right and 20 wrong, 1 and .5 by the prior


def test_posterior_is_bayes_rule() -> None:
    joint = np.array([[0.45, 0.05], [0.1, 0.4]])
    model = LabelNoiseModel(joint=joint, temperature=1.0)
    q = np.array([[0.2, 0.8]])
    found = model.posterior(np.log(q), np.array([0]))
    weights = np.array([0.2 * 0.45, 0.8 * 0.1])
    np.testing.assert_allclose(found[0], weights / weights.sum())


def test_trust_is_calibrated() -> None:
    rng = np.random.default_rng(3)
    true, logits = pictures(rng, 8000, sharpness=3)
    given = mislabel(true, 0.75 * np.eye(CLASSES) + 0.05, rng)
    trust = fit(logits, given, NO_ANSWERS).posterior(logits, given)[np.arange(8000), given]
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
        inside = (trust >= low) & (trust < high)
        assert (given == true)[inside].mean() == pytest.approx(trust[inside].mean(), abs=0.05)


def test_a_classifier_gets_the_more_weight_the_less_the_logits_say() -> None:
    """Guesses beside sharp logits; sharp log-probabilities beside blunt logits, and beside mere guesses."""
    rng = np.random.default_rng(4)
    true, logits = pictures(rng, 1500, sharpness=5)
    given = mislabel(true, 0.7 * np.eye(CLASSES) + 0.06, rng)
    guesses = rng.standard_normal((1500, CLASSES))
    shares = [
        best_classifier_weight(mine, log_softmax(other, axis=1), given)
        for mine, other in ((logits, guesses), (logits + 4 * guesses, logits), (guesses, logits))
    ]
    assert shares[0] <= 0.25 < shares[1]
    assert shares[2] == CLASSIFIER_WEIGHTS[-1]


def test_a_lucky_draw_changes_little_where_the_network_is_right() -> None:
    """15 % of the labels are wrong, and the expert happens to be shown right ones only."""
    rng = np.random.default_rng(8)
    true, logits = pictures(rng, 6000, sharpness=8)
    given = mislabel(true, 0.8125 * np.eye(CLASSES) + 0.0375, rng)
    assert fit(logits, given, 2 * np.eye(CLASSES)).noise_rate == pytest.approx((given != true).mean(), abs=0.03)


def confused(logits: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The network takes that share of the zeros for ones, and of the ones for zeros."""
    swapped = logits.copy()
    rows = rng.random(len(logits)) < share
    swapped[rows, 0], swapped[rows, 1] = logits[rows, 1], logits[rows, 0]
    return swapped


def looks(true: np.ndarray, given: np.ndarray, per_label: int) -> np.ndarray:
    """Counts [true, given] of what an expert finds in the first rows of every given label."""
    counts = np.zeros((CLASSES, CLASSES))
    for label in range(CLASSES):
        rows = np.flatnonzero(given == label)[:per_label]
        np.add.at(counts, (true[rows], label), 1)
    return counts


def test_confusions_that_the_expert_does_not_meet_are_the_networks() -> None:
    """A tenth of the labels is any other; the network confuses zeros and ones, which is no label noise."""
    rng = np.random.default_rng(5)
    true, logits = pictures(rng, 6000, sharpness=8)
    given = mislabel(true, 0.875 * np.eye(CLASSES) + 0.025, rng)
    logits, wrong = confused(logits, 0.3, rng), given != true
    seen, free = fit(logits, given, looks(true, given, 30)), fit(logits, given, NO_ANSWERS)
    assert free.joint[0, 1] > 2 * free.joint[2, 3]
    assert seen.joint[0, 1] < 1.3 * seen.joint[2, 3]
    better, worse = (
        roc_auc_score(wrong, 1 - model.posterior(logits, given)[np.arange(6000), given]) for model in (seen, free)
    )
    assert better > worse + 0.005


def test_confusions_that_the_expert_meets_are_the_labels() -> None:
    """A fifth of the zeros is called one, and nothing else is wrong."""
    rng = np.random.default_rng(6)
    true, logits = pictures(rng, 6000, sharpness=8)
    transition = np.eye(CLASSES)
    transition[0, :2] = 0.8, 0.2
    given = mislabel(true, transition, rng)
    model = fit(logits, given, looks(true, given, 30))
    assert model.transition[0, 1] == pytest.approx(0.2, abs=0.04)
    assert model.transition[2, 3] < 0.01


def test_a_share_of_one_label_is_wrong_whatever_the_true_class() -> None:
    """All classes are called zero now and then, as by a trigger: the looks tell so, and the other labels stay clean."""
    rng = np.random.default_rng(7)
    true, logits = pictures(rng, 6000, sharpness=8)
    transition = 0.9 * np.eye(CLASSES)
    transition[:, 0] += 0.1
    given = mislabel(true, transition, rng)
    model = fit(logits, given, looks(true, given, 40))
    assert np.abs(model.transition - transition).max() < 0.04


def test_structures_say_what_share_of_a_label_is_wrong_also_of_a_rare_one() -> None:
    """5,000, 5,000 and 100 rows given each label; 250, 500 and 5 of them wrong, by hand."""
    joint = np.array([[4750, 400, 1], [200, 4500, 4], [50, 100, 95]], float)
    by_given = np.array([[4750, 250, 2.5], [125, 4500, 2.5], [125, 250, 95]])
    np.testing.assert_allclose(label_noise._by_given_label(joint), by_given)
    share = 755 / 10_100
    right, wrong = joint.sum(0) * (1 - share), joint.sum(0) * share / 2
    np.testing.assert_allclose(label_noise._uniform(joint), np.where(np.eye(3) > 0, right, wrong))
