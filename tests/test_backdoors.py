"""Triggers optimised against a network: their bounds, what they leave alone, and that a network falls for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import digits

from decant.attacks import witches_brew
from decant.attacks._surrogate import Surrogate
from decant.attacks.base import Attack, load_attacks
from decant.attacks.plant import plant
from decant.attacks.smooth import stamp
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, as_float, to_device, train_classifier


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


def test_witches_brew_faintly_perturbs_rows_of_the_target_and_nothing_else() -> None:
    train, test = digits()
    brew = prepared("witches_brew", rate=0.02, strength=12, epochs=1, steps=3, restarts=2, augment="shift_flip")
    found = brew.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    delta = np.abs(found.images.pixels.astype(int) - train.pixels)
    assert found.rows.sum() == round(0.02 * len(train)) and set(train.labels[found.rows]) == {5}
    assert (delta[found.rows].max((1, 2, 3)) == 12).all() and not delta[~found.rows].any()
    assert np.array_equal(found.images.labels, train.labels)
    chosen = brew.trigger(test, np.random.default_rng(0))
    assert chosen is not None and chosen.labels.tolist() == [5]
    assert test.labels[(test.pixels == chosen.pixels).all((1, 2, 3))].tolist() == [8]


@pytest.mark.parametrize("augment", ["none", "shift_flip"])
def test_witches_brew_brings_the_rows_gradient_nearer_to_the_wanted_one(augment: str) -> None:
    """B of the perturbations after no step, and after 30."""
    train, _ = digits()
    settings = prepared("witches_brew", strength=32, steps=30, augment=augment).settings
    surrogate = Surrogate(train, "small_cnn", seed=0)
    surrogate.learn_epochs(4)
    surrogate.model.requires_grad_(True)
    x = as_float(to_device(train.pixels[train.labels == 5][:40]))
    wanted = [witches_brew.gradient_of(surrogate, as_float(to_device(settings.chosen.pixels)), 5, graph=False)]

    def reached(steps: int) -> float:
        seeded = torch.Generator().manual_seed(0)
        return witches_brew.matched([surrogate], wanted, x, replace(settings, steps=steps), seeded)[1]

    assert reached(30) < 0.7 * reached(0)
