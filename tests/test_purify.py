"""Purification on real digits: it removes an unlearnable perturbation, streams, and is the same twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import digits

from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.data.tables import iter_images, iter_perturbations, read_images, sample_images, write_images
from decant.purify.dvae import PRESETS
from decant.purify.two_stage import Inference, PurifyStage, fit, to_uint8, write_parts

SHORT = replace(PRESETS["small"], steps=80)
FIRST, SECOND = PurifyStage(SHORT, 0.25), PurifyStage(SHORT, 0.75)


def with_lsp(images: Images, strength: float) -> Images:
    (attack,) = load_attacks([{"name": "lsp", "strength": strength, "patch": 4}])
    return attack.poison(images, np.random.default_rng(0), np.zeros(len(images), bool)).images


def test_stored_pixels_are_rounded_not_truncated() -> None:
    x = torch.tensor([[[[0.0, 0.4999 / 255, 0.5001 / 255, 1.2]]]])
    assert to_uint8(x).ravel().tolist() == [0, 0, 1, 255]


@pytest.mark.slow
def test_two_stages_remove_an_unlearnable_perturbation() -> None:
    """x3 holds less of the class-wise pattern than the received rows; p^ correlates with the planted perturbation."""
    train = digits()[0].select(np.arange(800))
    received = with_lsp(train, 24)
    x1, p1 = Inference(fit(received, FIRST, seed=0), 0).first_stage(received)
    x3, _ = Inference(fit(x1, SECOND, seed=1), 1).second_stage(x1)
    planted = received.pixels.astype(np.float64) - train.pixels
    left = x3.pixels.astype(np.float64) - train.pixels
    assert (planted * p1.astype(np.float64)).sum() > 0
    class_pattern = np.stack([planted[train.labels == k].mean(0) for k in range(10)])[train.labels]
    share_left = (left * class_pattern).sum() / (planted * class_pattern).sum()
    assert share_left < 0.6  # of the class-wise pattern that made the set unlearnable


def test_same_seed_same_pixels() -> None:
    few = digits()[0].select(np.arange(128))
    brief = replace(FIRST, recipe=replace(SHORT, steps=2))
    (x, p), (again, p_again) = (Inference(fit(few, brief, seed=3), 3).first_stage(few) for _ in range(2))
    assert (x.pixels == again.pixels).all() and (p == p_again).all()


def test_parts_stream_into_whole_tables(tmp_path: Path) -> None:
    train, _ = digits()
    parts = [train.select(np.arange(start, min(start + 500, len(train)))) for start in range(0, len(train), 500)]
    off = [np.full(part.pixels.shape, 0.1, np.float16) for part in parts]
    rows, rms = write_parts(iter(zip(parts, off, strict=True)), tmp_path / "x.parquet", tmp_path / "p.parquet")
    assert rows == len(train) and abs(rms - 25.5) < 0.05
    assert (read_images(tmp_path / "x.parquet").pixels == train.pixels).all()
    ids, perturbations = map(np.concatenate, zip(*iter_perturbations(tmp_path / "p.parquet"), strict=True))
    assert (ids == train.ids).all() and perturbations.shape == train.pixels.shape
    assert len(list(iter_images(tmp_path / "x.parquet"))) == len(parts)


def test_a_sample_is_the_same_rows_of_every_table_of_that_length(tmp_path: Path) -> None:
    train, _ = digits()
    write_images(tmp_path / "a.parquet", train)
    write_images(tmp_path / "b.parquet", train.with_pixels(255 - train.pixels))
    first, second = (sample_images(tmp_path / name, 100, seed=4) for name in ("a.parquet", "b.parquet"))
    assert len(first) == 100 and len(set(first.ids)) == 100 and (np.diff(first.ids) > 0).all()
    assert (first.ids == second.ids).all() and (first.pixels == 255 - second.pixels).all()
    assert len(sample_images(tmp_path / "a.parquet", 10**6, seed=4)) == len(train)
