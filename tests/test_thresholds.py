"""Thresholds for target rates, against drawing the truth many times over."""

import numpy as np
import pytest
from scipy.stats import binomtest

from decant.errors import SettingsError
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import (
    expected_errors,
    expected_rates,
    operating_points,
    reliability,
    stratified_noise_rate,
    threshold_for,
    zero_failure_bound,
)
from decant.settings import load


@pytest.fixture(scope="module")
def trust() -> np.ndarray:
    return np.random.default_rng(0).beta(6, 0.5, 4000)


@pytest.mark.parametrize("rate", [0.0005, 0.01, 0.2])
@pytest.mark.parametrize("kind", ["far", "frr"])
def test_target_rate_is_kept_and_used_up(kind: str, rate: float, trust: np.ndarray) -> None:
    """Labels are drawn as the trusts say; the target rate is met, and no better threshold would meet it."""
    threshold = threshold_for(trust, f"{kind}={rate}")
    right = np.random.default_rng(1).random((500, len(trust))) < trust
    accepted = trust >= threshold
    failing = (~right & accepted, ~right) if kind == "far" else (right & ~accepted, right)
    found = failing[0].sum(1).mean() / failing[1].sum(1).mean()
    assert found <= 1.1 * rate
    assert found == pytest.approx(rate, rel=0.15)
    which = ("far", "frr").index(kind)
    assert expected_rates(trust, accepted)[which] <= rate + 1e-9
    bolder = np.sort(trust[trust < threshold])[-1] if kind == "far" else np.sort(trust[trust > threshold])[0]
    assert expected_rates(trust, trust >= bolder)[which] > rate


def test_operating_points_are_what_drawing_the_truth_comes_to(trust: np.ndarray) -> None:
    """The chosen one first, then the offered ones that are others, however they are written."""
    found = operating_points(trust, "far=1e-2")
    assert [point.threshold for point in found] == ["far=1e-2", 0.5, "far=0.001", "frr=0.01"]
    right = np.random.default_rng(1).random((500, len(trust))) < trust
    for point in found:
        refused = trust < point.trust
        assert point.refused == refused.sum()
        assert point.far == pytest.approx((~right & ~refused).sum() / (~right).sum(), rel=0.15)
        assert point.frr == pytest.approx((right & refused).sum() / right.sum(), rel=0.05)


def test_rates_where_every_label_is_surely_right_or_surely_wrong() -> None:
    accepted = np.array([True, True, False])
    assert expected_rates(np.ones(3), accepted) == (0, pytest.approx(1 / 3))
    assert expected_rates(np.zeros(3), accepted) == (pytest.approx(2 / 3), 0)


def test_rows_of_equal_trust_share_their_fate() -> None:
    trust = np.array([0.2, 0.9, 0.9, 0.9, 0.999])
    assert threshold_for(trust, "far=0.2") == 0.999  # two of the three .9 would do, but which?
    assert threshold_for(trust, "far=0.4") == 0.9
    assert threshold_for(trust, "frr=0.3") == 0.9
    assert threshold_for(np.full(4, 0.5), "far=0.1") > 0.5


def test_certain_labels_are_all_accepted() -> None:
    assert threshold_for(np.ones(3), "far=0.001") == 1.0
    assert threshold_for(np.ones(3), 0.7) == 0.7


def test_resolution_is_the_rule_of_three() -> None:
    assert zero_failure_bound(300) == pytest.approx(3 / 300, rel=0.02)
    assert zero_failure_bound(0) == 1


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_interval_covers_the_share_of_wrong_labels(rate: float) -> None:
    rng = np.random.default_rng(2)
    refuted = rng.negative_binomial(60, 1 - rate, 2000)
    found = [stratified_noise_rate(np.array([[60, 0], [count, 0]]), np.array([900, 0])) for count in refuted]
    bounds = np.array([one[1] for one in found if one])
    covered = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
    assert 0.94 <= covered.mean() <= 0.99


def test_labels_count_by_their_rows_in_the_share_of_wrong_ones() -> None:
    """9,900 "ok", all right, and 100 "defect", half wrong: the draw takes ten right ones of each."""
    found = stratified_noise_rate(np.array([[10, 10], [0, 10]]), np.array([9900, 100]))
    assert found is not None
    share, (low, high) = found
    assert share == pytest.approx(0.005)
    assert low <= 0.005 <= high < 0.35


def test_interval_of_an_even_draw_is_that_of_clopper_and_pearson() -> None:
    found = stratified_noise_rate(np.array([[20, 4, 0], [4, 20, 4], [0, 0, 20]]), np.array([240, 240, 240]))
    exact = binomtest(12, 72).proportion_ci(0.95, "exact")
    assert found is not None and found == (pytest.approx(12 / 72), pytest.approx((exact.low, exact.high)))


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_interval_covers_the_share_of_an_unbalanced_set(rate: float) -> None:
    rows, rates = np.array([600, 300, 100]), rate * np.array([0.5, 1.0, 4.0])
    true = (rows * rates).sum() / rows.sum()
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(1000):
        wrong = rng.negative_binomial(20, 1 - rates)
        found = stratified_noise_rate(np.diag([20, 20, 20]) + np.roll(np.diag(wrong), 1, axis=0), rows)
        assert found is not None
        covered.append(found[1][0] <= true <= found[1][1])
    assert np.mean(covered) > 0.93


def test_where_nothing_was_drawn_nothing_is_known_and_where_all_is_wrong_all_may_be() -> None:
    assert stratified_noise_rate(np.zeros((2, 2)), np.array([5, 5])) is None
    found = stratified_noise_rate(np.array([[0, 0], [3, 0]]), np.array([5, 5]))
    assert found is not None and (found[0], found[1][1]) == (1.0, 1.0)


@pytest.mark.parametrize("threshold", ["frr=2", "far", "fdr=0.1", "far=-0.1", 1.5, True])
def test_a_threshold_that_is_no_rate_is_refused(threshold: object) -> None:
    with pytest.raises(SettingsError, match=r"verify\.threshold"):
        load(VerifySettings, {"threshold": threshold}, "verify")
    assert load(VerifySettings, {"threshold": "far=0.001"}, "verify").threshold == "far=0.001"


def test_scores_of_paper_mode_have_no_target_rate() -> None:
    with pytest.raises(SettingsError, match="probability"):
        load(VerifySettings, {"threshold": "far=0.001", "mode": "paper"}, "verify")


def test_expected_errors_come_true_when_the_truth_is_drawn_as_the_trusts_say(trust: np.ndarray) -> None:
    accepted = trust >= 0.7
    right = np.random.default_rng(2).random((500, len(trust))) < trust
    assert expected_errors(trust, accepted) == pytest.approx((right != accepted).mean(), rel=0.02)


def test_a_mode_without_probabilities_can_not_stop_by_them() -> None:
    with pytest.raises(SettingsError, match=r"verify\.stop_below"):
        load(VerifySettings, {"mode": "paper", "stop_below": 0.01}, "verify")


def test_reliability_of_trusts_worked_out_by_hand() -> None:
    brier, ece = reliability(np.array([0.9, 0.92, 1.0, 0.2]), np.array([True, False, True, False]))
    assert brier == pytest.approx((0.01 + 0.8464 + 0 + 0.04) / 4)
    assert ece == pytest.approx((abs(0.9 + 0.92 + 1.0 - 2) + 0.2) / 4)


def test_honest_trusts_are_reliable(trust: np.ndarray) -> None:
    right = np.random.default_rng(3).random(len(trust)) < trust
    assert reliability(trust, right)[1] < 0.02 < reliability(trust**4, right)[1]
