"""Unlearnable examples against their definitions: bounds, equations, and what they do to a network.

Accuracies in the comments: small_cnn, 6 epochs, on the 360 test digits, seeds 0 and 1; 0.99 without an attack.
"""

import subprocess
import sys
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from samples import digits
from torch.nn import functional as F

from decant.attacks import ar, em, load_attacks, names, ops, pil
from decant.errors import SettingsError
from decant.settings import TrainSettings
from decant.tables import Images
from decant.training import accuracy, predict, train_classifier

TRAIN = TrainSettings(epochs=6)
NOISE_WITHIN_A_BALL = {"pil": {"strength": 12}, "em": {"strength": 12, "rounds": 1, "steps": 10}}


def poisoned(name: str, images: Images | None = None, seed: int = 0, **settings: object) -> Images:
    """Digits, or `images`, with the attack on them."""
    images = digits()[0] if images is None else images
    planned = load_attacks([{"name": name, **settings}])[0]
    return planned.poison(images, np.random.default_rng(seed), np.zeros(len(images), bool)).images


def difference(spoilt: Images) -> np.ndarray:
    return spoilt.pixels.astype(int) - digits()[0].pixels


@cache
def clean_accuracy() -> float:
    train, test = digits()
    found = accuracy(train_classifier(train, TRAIN, seed=0), test)
    assert found is not None
    return found


def victim_accuracy(spoilt: Images) -> float:
    """On clean test digits, of a network that learned the poisoned ones perfectly."""
    victim = train_classifier(spoilt, TRAIN, seed=0)
    assert accuracy(victim, spoilt) > 0.95  # type: ignore[operator]
    found = accuracy(victim, digits()[1])
    assert found is not None
    return found


def test_importing_every_attack_loads_no_torch() -> None:
    code = "import sys, importlib, decant.attacks as a\n"
    code += "for name in a.names(): importlib.import_module('decant.attacks.' + name)\n"
    code += "assert 'torch' not in sys.modules, 'torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_private_modules_are_no_attacks() -> None:
    assert not [name for name in names() if name.startswith("_")]


@pytest.mark.parametrize("name", NOISE_WITHIN_A_BALL)
def test_noise_stays_within_its_ball_and_reaches_it(name: str) -> None:
    spoilt = poisoned(name, **NOISE_WITHIN_A_BALL[name])
    assert np.abs(difference(spoilt)).max() == 12


@pytest.mark.parametrize("name", ["ops", "ar", "pil", "em"])
def test_only_a_share_of_the_rows_carries_noise(name: str) -> None:
    cheap = {"em": {"rounds": 1, "steps": 1}}.get(name, {})
    changed = difference(poisoned(name, rate=0.25, **cheap)).any((1, 2, 3))
    assert changed.sum() == round(0.25 * len(digits()[0]))


def colour_photos() -> Images:
    """60 random 6 x 6 RGB images of ten classes."""
    train = digits()[0].select(np.arange(60))
    return train.with_pixels(np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3), dtype=np.uint8))


def naive_scores(rows: np.ndarray) -> dict[tuple[int, int, tuple[float, ...]], float]:
    """The paper's score of every place and colour, by its formula."""
    found = {}
    for i, j, colour in product(range(rows.shape[1]), range(rows.shape[2]), product((0.0, 1.0), repeat=rows.shape[3])):
        gap = np.abs(np.array(colour) - rows[:, i, j] / 255)
        found[i, j, colour] = gap.mean() / (gap.std() + ops.STEADY)
    return found


def test_ops_sets_the_pixel_that_a_naive_search_finds() -> None:
    images = colour_photos()
    spoilt = poisoned("ops", images)
    taken: set[tuple[int, int]] = set()
    for label in range(10):
        rows = images.labels == label
        scores = {key: score for key, score in naive_scores(images.pixels[rows]).items() if key[:2] not in taken}
        i, j, colour = max(scores, key=lambda key: scores[key])
        taken.add((i, j))
        expected = images.pixels[rows].copy()
        expected[:, i, j] = np.array(colour) * 255
        assert (spoilt.pixels[rows] == expected).all()


def test_ops_changes_as_many_pixels_per_class_as_asked_and_no_two_classes_share_one() -> None:
    train = digits()[0]
    changed = difference(poisoned("ops", sparsity=3)).any(3)
    places = [changed[train.labels == label].any(0) for label in range(10)]
    assert [place.sum() for place in places] == [3] * 10
    assert np.sum(places, 0).max() == 1


def test_ops_asked_for_more_pixels_than_there_are_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"ops\.sparsity: at most 25 for 10 classes of 16 x 16 pixels"):
        poisoned("ops", sparsity=26)


def test_ar_noise_is_cancelled_by_the_filter_of_its_class_and_by_no_other() -> None:
    labels, shape = np.repeat(np.arange(10), 5), (32, 32, 3)
    kernels = ar.search(10, shape, np.random.default_rng(0))
    assert kernels.sum((2, 3)) == pytest.approx(1) and (kernels[..., 2, 2] == 0).all()
    noise = ar.perturbations(labels, shape, kernels, 4.6, np.random.default_rng(1))
    assert np.sqrt((noise**2).mean((1, 2, 3))) == pytest.approx(4.6, rel=1e-5)
    filters = kernels.copy()
    filters[..., 2, 2] = -1
    windows = np.lib.stride_tricks.sliding_window_view(noise, (3, 3), (1, 2))  # (n, 30, 30, c, 3, 3)
    answers = np.abs(np.einsum("nijcrs,kcrs->nkijc", windows, filters)).mean((2, 3, 4))  # (n, class of the filter)
    own = labels[:, None] == np.arange(10)
    assert answers[own].max() < 1e-4
    assert answers[~own].min() > 0.5  # grey levels


def test_ar_scales_to_larger_images_without_growing() -> None:
    shape = (96, 96, 1)
    kernels = ar.search(3, shape, np.random.default_rng(0))
    signals = ar.process(np.repeat(kernels[:, 0], 4, 0).transpose(1, 2, 0)[None], shape[:2], np.random.default_rng(1))
    assert np.sqrt((signals**2).mean((0, 1, 2))).max() < 2 * ar.LARGEST_RMS


def test_pil_noise_alone_tells_the_class_and_fools_a_linear_model() -> None:
    train, test = digits()
    spoilt = poisoned("pil", strength=40)
    names_it = pil.linear_classifier(train, 0)
    alone = torch.from_numpy(difference(spoilt)).permute(0, 3, 1, 2).flatten(1) / -255
    assert (names_it(alone.float()).argmax(1).numpy() == train.labels).mean() > 0.99
    victim = pil.linear_classifier(spoilt, 0)
    seen = [victim(torch.from_numpy(x.pixels).flatten(1) / 255).argmax(1).numpy() == x.labels for x in (spoilt, test)]
    assert seen[0].mean() > 0.99 and seen[1].mean() < 0.7  # 0.95 when trained on clean digits


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_em_rows_have_a_lower_loss_than_clean_ones_for_a_fresh_network(mode: str) -> None:
    train = digits()[0].select(np.arange(700))
    spoilt = poisoned("em", train, strength=32, mode=mode, rounds=4)
    fresh = train_classifier(spoilt, TrainSettings(epochs=3), seed=5)
    losses = [F.cross_entropy(torch.from_numpy(predict(fresh, x.pixels)), torch.from_numpy(train.labels).long())
              for x in (spoilt, train)]  # fmt: skip
    assert losses[0] < 0.7 * losses[1]
    if mode == "class":
        noise = em.perturbations(train, load_attacks([{"name": "em", "mode": mode}])[0].settings, seed=0)
        assert all(len(np.unique(noise[train.labels == label], axis=0)) == 1 for label in range(10))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ops", {}),  # 0.49, 0.28
        ("ar", {"strength": 40}),  # 0.68, 0.41
        ("pil", {"strength": 40}),
        ("em", {"strength": 48}),  # 0.53, 0.54
    ],
)
def test_a_network_trained_on_unlearnable_digits_fails_on_clean_ones(name: str, settings: dict[str, object]) -> None:
    assert clean_accuracy() > 0.97
    assert victim_accuracy(poisoned(name, **settings)) < clean_accuracy() - 0.15
