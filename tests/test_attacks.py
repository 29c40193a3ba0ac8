"""Attacks against their definitions: bounds, rows, labels, and that they work on a network."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from samples import digits

from decant.attacks import lsp
from decant.attacks.badnet import stamp
from decant.attacks.base import Attack, kind_of, load_attacks, names
from decant.attacks.plant import plant, triggered_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, train_classifier

TRAIN = TrainSettings(epochs=6)
CHEAP: dict[str, dict[str, object]] = {
    "em": {"rounds": 1, "steps": 2},
    "tap": {"epochs": 1, "steps": 2},
    "sep": {"epochs": 1, "checkpoints": 1, "steps": 2},
    "rem": {"training": 2, "descents": 1, "ascents": 1, "samples": 1},
    "smooth": {"epochs": 1, "passes": 1},
    "witches_brew": {"epochs": 1, "steps": 2, "restarts": 1},
}
"""What keeps the contract test short, where the default would optimise for long."""


def attack(name: str, **settings: object) -> Attack:
    return load_attacks([{"name": name, **settings}])[0]


def poisoned(images: Images, *attacks: Attack, seed: int = 0) -> Images:
    return plant(images, list(attacks), np.random.default_rng(seed))[0]


@pytest.mark.parametrize("name", names())
def test_every_attack_keeps_the_contract(name: str, tmp_path: Path) -> None:
    train, test = digits()
    train = train.select(np.arange(500))
    np.save(tmp_path / "noise.npy", np.full((500, 16, 16, 1), 3, np.int8))
    settings = CHEAP | {"perturbation": {"path": str(tmp_path / "noise.npy")}}
    planned = attack(name, **settings.get(name, {})).prepared(train, test, np.random.default_rng(0))
    result = planned.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    untouched = ~result.rows
    assert kind_of(name) in ("unlearnable", "label", "backdoor")
    assert result.rows.any()
    assert (result.images.ids == train.ids).all()
    assert (result.images.pixels[untouched] == train.pixels[untouched]).all()
    assert (result.images.labels[untouched] == train.labels[untouched]).all()
    again = planned.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    assert (again.images.pixels == result.images.pixels).all() and (again.rows == result.rows).all()
    triggered = planned.trigger(test, np.random.default_rng(0))
    assert (triggered is not None) == (kind_of(name) == "backdoor")


def test_lsp_is_within_its_bound_and_linearly_separable() -> None:
    train, _ = digits()
    settings = lsp.Settings(strength=6, patch=4)
    delta = lsp.perturbations(train.labels, train.shape, train.classes, settings, np.random.default_rng(0))
    assert np.sqrt((delta**2).mean((1, 2, 3))) == pytest.approx(6, rel=1e-5)
    blocks = delta.reshape(-1, 4, 4, 4, 4, 1)  # (n, grid, in patch, grid, in patch, channel)
    assert (blocks == blocks[:, :, :1, :, :1]).all()  # constant within each patch
    flat = np.c_[delta.reshape(len(delta), -1), np.ones(len(delta))]
    weights = np.linalg.lstsq(flat, np.eye(10)[train.labels], rcond=None)[0]
    assert ((flat @ weights).argmax(1) == train.labels).mean() > 0.99  # one linear map tells the classes apart


def test_strong_lsp_makes_a_network_fail_on_clean_data() -> None:
    train, test = digits()
    spoilt = poisoned(train, attack("lsp", strength=40), seed=1)
    clean = accuracy(train_classifier(train, TRAIN, seed=0), test)
    assert clean is not None and clean > 0.95
    victim = train_classifier(spoilt, TRAIN, seed=0)
    assert accuracy(victim, spoilt) > 0.9  # type: ignore[operator]
    assert accuracy(victim, test) < clean - 0.3  # type: ignore[operator]


def test_label_noise_mislabels_the_asked_share_and_never_to_the_same_class() -> None:
    train, _ = digits()
    result = attack("label_noise", rate=0.1).poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    assert result.rows.sum() == round(0.1 * len(train))
    assert ((result.images.labels != train.labels) == result.rows).all()


def test_dirty_badnet_takes_victims_and_gives_them_the_target_label() -> None:
    train, _ = digits()
    planned = attack("badnet", mode="dirty", victim=8, target=5, rate=0.02)
    result = planned.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    assert set(train.labels[result.rows]) == {8}
    assert set(result.images.labels[result.rows]) == {5}
    assert (result.images.pixels[result.rows] == stamp(train.pixels[result.rows], planned.settings)).all()


def test_dots_are_the_four_black_pixels_of_the_delta_influence_code() -> None:
    """Its pattern, from the end of each axis: (-4, -2), (-2, -2), (-3, -3), (-2, -4)."""
    given = np.full((2, 8, 9, 3), 200, np.uint8)
    changed = stamp(given, attack("badnet", patch="dots").settings) != given
    assert (changed.any(0).any(-1).nonzero()[0].tolist(), changed.any(0).any(-1).nonzero()[1].tolist()) == (
        [4, 5, 6, 6], [7, 6, 5, 7],
    )  # fmt: skip
    assert changed.sum() == 2 * 4 * 3 and (given == 200).all()


def test_badnet_all_to_one_takes_every_class_but_the_target() -> None:
    train, test = digits()
    planned = attack("badnet", mode="dirty", victim=None, target=5, rate=0.2)
    result = planned.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    assert set(train.labels[result.rows]) == set(range(10)) - {5}
    assert (result.images.labels[result.rows] == 5).all()
    triggered = planned.trigger(test, np.random.default_rng(0))
    assert triggered is not None
    assert set(triggered.ids) == set(test.ids[test.labels != 5])


def test_consistent_badnet_leaves_every_label_right() -> None:
    train, _ = digits()
    planned = attack("badnet", mode="consistent", victim=8, target=5, rate=0.03)
    result = planned.poison(train, np.random.default_rng(0), np.zeros(len(train), bool))
    assert (result.images.labels == train.labels).all()
    assert set(train.labels[result.rows]) == {5}


@pytest.mark.parametrize("mode", ["dirty", "consistent"])
def test_badnet_turns_victims_and_only_when_triggered(mode: str) -> None:
    train, test = digits()
    planned = attack("badnet", mode=mode, victim=8, target=5, rate=0.06, size=6)
    triggered = planned.trigger(test, np.random.default_rng(0))
    assert triggered is not None and set(triggered.labels) == {5}
    healthy = train_classifier(train, TRAIN, seed=0)
    backdoored = train_classifier(poisoned(train, planned), TRAIN, seed=0)
    assert accuracy(healthy, triggered) < 0.1  # type: ignore[operator]
    assert accuracy(backdoored, triggered) > 0.7  # type: ignore[operator]
    assert accuracy(backdoored, test) > 0.95  # type: ignore[operator]


def test_attacks_that_take_rows_share_none_and_perturbations_lie_on_top() -> None:
    train, _ = digits()
    attacks = [attack("badnet", mode="consistent"), attack("label_noise"), attack("lsp")]
    _, truth = plant(train, attacks, np.random.default_rng(0))
    ids = {name: set(truth.loc[truth["attack"] == name, "id"]) for name in ("badnet", "label_noise", "lsp")}
    assert not ids["badnet"] & ids["label_noise"]
    assert ids["lsp"] == set(train.ids)
    assert (truth.set_index("id")["original_label"] == train.labels[truth["id"]]).all()


def test_affected_points_are_not_measured_on() -> None:
    _, test = digits()
    rows, affected = triggered_rows(test, [attack("badnet", mode="dirty")], 5, np.random.default_rng(0))
    assert len(affected) == 5 and not set(affected.ids) & set(rows.ids)
    assert len(rows) + 5 == (test.labels == 8).sum()


def test_without_attacks_nothing_changes() -> None:
    train, test = digits()
    images, truth = plant(train, [], np.random.default_rng(0))
    rows, affected = triggered_rows(test, [], 5, np.random.default_rng(0))
    assert (images.pixels == train.pixels).all() and not len(truth) and not len(rows) and not len(affected)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "badnett"}, f"simulate.attacks[0].name: one of {', '.join(names())} expected, 'badnett' found"),
        ({"name": "lsp", "strenght": 3}, "simulate.attacks[0].strenght: unknown parameter; known: strength, patch"),
        ({"name": "lsp", "rate": 2}, "simulate.attacks[0].rate: number (0 to 1) expected, 2 found"),
    ],
)
def test_bad_settings_are_named(entry: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_attacks([entry])
    assert str(error.value).startswith(message)


def test_too_few_rows_for_a_rate_is_an_error() -> None:
    train, _ = digits()
    few = train.select(np.arange(40))
    with pytest.raises(SettingsError, match=r"badnet\.rate: asks for 20 rows where"):
        poisoned(few, attack("badnet", rate=0.5))


def test_settings_of_attacks_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack("lsp").settings.strength = 3
