"""Triggers optimised against a network: their bounds, what they leave alone, and that a network falls for them."""

import numpy as np
import pytest
from samples import digits

from decant.attacks import Attack, load_attacks
from decant.attacks.smooth import stamp
from decant.settings import TrainSettings
from decant.training import accuracy, train_classifier
from tasks.simulate import plant


def prepared(name: str, **settings: object) -> Attack:
    train, test = digits()
    return load_attacks([{"name": name, **settings}])[0].prepared(train, test, np.random.default_rng(0))


@pytest.fixture(scope="module")
def smooth() -> Attack:
    return prepared("smooth", rate=0.05, epochs=3, passes=1)


def test_smooth_pattern_is_within_its_bound_and_has_no_high_frequencies(smooth: Attack) -> None:
    pattern = smooth.settings.pattern
    assert pattern.shape == (16, 16, 1) and pattern.min() == 0 and pattern.max() == pytest.approx(0.2)
    power = np.abs(np.fft.fft2(pattern[..., 0] - pattern.mean())) ** 2
    frequency = np.abs(np.fft.fftfreq(16))
    low = np.maximum.outer(frequency, frequency) <= 3 / 16
    assert power[low].sum() > 0.95 * power.sum()


def test_smooth_rows_span_the_full_range_as_clean_ones_do() -> None:
    train, _ = digits()
    stamped = stamp(train.pixels, np.linspace(0, 0.2, 256).reshape(16, 16, 1))
    assert (stamped.min((1, 2, 3)) == 0).all() and (stamped.max((1, 2, 3)) == 255).all()


def test_smooth_trigger_turns_victims_and_only_a_network_that_learnt_it(smooth: Attack) -> None:
    train, test = digits()
    triggered = smooth.trigger(test, np.random.default_rng(0))
    assert triggered is not None
    settings = TrainSettings(epochs=6)
    rows, truth = plant(train, [smooth], np.random.default_rng(0))
    assert set(truth["original_label"]) == {8}
    backdoored, healthy = (train_classifier(images, settings, seed=0) for images in (rows, train))
    assert accuracy(backdoored, triggered) > 0.8  # type: ignore[operator]
    assert accuracy(backdoored, test) > 0.95  # type: ignore[operator]
    assert accuracy(healthy, triggered) < 0.1  # type: ignore[operator]


def test_poison_success_can_be_asked_of_all_classes(smooth: Attack) -> None:
    _, test = digits()
    victims, everyone = (a.trigger(test, np.random.default_rng(0)) for a in (smooth, smooth.on_all_classes()))
    assert victims is not None and everyone is not None
    assert len(victims) == (test.labels == 8).sum() and len(everyone) == (test.labels != 5).sum()
