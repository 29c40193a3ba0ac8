"""Blended injection, and label noise that follows confusable classes, against their definitions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import digits

from decant.attacks import blend
from decant.attacks.base import Attack, Poisoned, load_attacks
from decant.data.images import Images
from decant.errors import SettingsError
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, train_classifier


def attack(name: str, **settings: object) -> Attack:
    return load_attacks([{"name": name, **settings}])[0]


def planted(images: Images, planned: Attack, seed: int = 0) -> Poisoned:
    return planned.poison(images, np.random.default_rng(seed), np.zeros(len(images), bool))


def test_blend_is_the_weighted_mean_of_picture_and_pattern() -> None:
    train, test = digits()
    planned = attack("blend", victim=None, target=0, rate=0.1, alpha=0.3)
    result = planted(train, planned)
    pattern = blend.pattern(train.shape, planned.settings)
    wanted = 0.7 * train.pixels[result.rows] + 0.3 * pattern
    assert np.abs(result.images.pixels[result.rows] - wanted).max() <= 0.5 + 1e-9
    assert 0 not in train.labels[result.rows] and (result.images.labels[result.rows] == 0).all()
    triggered = planned.trigger(test, np.random.default_rng(99))  # the same pattern, whatever the generator
    assert triggered is not None
    victims = test.labels != 0
    assert (triggered.ids == test.ids[victims]).all() and (triggered.labels == 0).all()
    assert np.abs(triggered.pixels - (0.7 * test.pixels[victims] + 0.3 * pattern)).max() <= 0.5 + 1e-9


def test_consistent_blend_leaves_every_label_right() -> None:
    train, _ = digits()
    result = planted(train, attack("blend", mode="consistent", victim=8, target=5, rate=0.03))
    assert (result.images.labels == train.labels).all() and set(train.labels[result.rows]) == {5}


def test_blend_turns_triggered_rows_and_only_these() -> None:
    train, test = digits()
    planned = attack("blend", victim=None, target=0, rate=0.09375)
    triggered = planned.trigger(test, np.random.default_rng(0))
    assert triggered is not None
    healthy, backdoored = (
        train_classifier(rows, TrainSettings(epochs=6), seed=0) for rows in (train, planted(train, planned).images)
    )
    assert accuracy(healthy, triggered) < 0.2  # type: ignore[operator]
    assert accuracy(backdoored, triggered) > 0.8  # type: ignore[operator]
    assert accuracy(backdoored, test) > 0.95  # type: ignore[operator]


def test_blend_takes_a_picture_of_any_size_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "left.png"
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, :32], picture[..., 3] = 255, 255
    Image.fromarray(picture).save(path)
    found = blend.pattern((16, 16, 1), blend.Settings(pattern=str(path)))
    assert found.shape == (16, 16, 1)
    assert (found[:, :6] == 255).all() and (found[:, 10:] == 0).all()
    with pytest.raises(SettingsError, match=r"^blend.pattern: 'noise' or an image expected, '.*missing.png': "):
        blend.pattern((16, 16, 1), blend.Settings(pattern=str(tmp_path / "missing.png")))


def test_circular_label_noise_makes_every_wrong_label_the_next_class() -> None:
    train, _ = digits()
    result = planted(train, attack("label_noise", rate=0.2, pairs="circular"))
    assert result.rows.sum() == round(0.2 * len(train))
    assert ((result.images.labels != train.labels) == result.rows).all()
    assert (result.images.labels[result.rows] == (train.labels[result.rows] + 1) % 10).all()


def test_label_noise_by_pairs_takes_only_their_classes() -> None:
    train, _ = digits()
    result = planted(train, attack("label_noise", rate=0.1, pairs={4: 9, 7: 1}))
    assert set(zip(train.labels[result.rows], result.images.labels[result.rows], strict=True)) == {(4, 9), (7, 1)}
    assert result.rows.sum() == round(0.1 * len(train))


@pytest.mark.parametrize("pairs", [{4: 10}, {4: 4}, {"four": 9}])
def test_pairs_that_name_no_other_class_are_refused(pairs: dict[object, int]) -> None:
    with pytest.raises(SettingsError, match=r"^label_noise.pairs: class numbers from 0 to 9, right to another one"):
        planted(digits()[0], attack("label_noise", pairs=pairs))
