"""Named random streams: the same name gives the same draws, and no two fits share any."""

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state

from decant.streams import child, stream, torch_stream


def test_a_numbered_stream_is_the_child_that_numpy_spawns() -> None:
    spawned = np.random.SeedSequence(7).spawn(4)[3]
    assert stream(7, 3).integers(1 << 60) == np.random.default_rng(spawned).integers(1 << 60)


def test_the_same_seed_and_name_give_the_same_draws() -> None:
    assert (stream(1, "verify", "references").random(9) == stream(1, "verify", "references").random(9)).all()
    first, again = (torch.rand(9, generator=torch_stream(1, "fold", 2)) for _ in range(2))
    assert first.equal(again)


def test_fits_of_neighbouring_seeds_and_numbers_share_no_stream() -> None:
    """As `seed + number` would have it: seed 0's fit 1 would be seed 1's fit 0."""
    seeds = {child(seed, "fold", number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400


def test_what_is_drawn_for_decides_the_draws() -> None:
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("a", 0), ("a", 1)]
    assert len({child(0, *name) for name in names}) == len(names)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_child_fits_every_generator(seed: int) -> None:
    assert 0 <= child(seed, "x") < 2**32
    torch.Generator().manual_seed(child(seed, "x"))
    check_random_state(child(seed, "x"))  # of scikit-learn


def test_streams_of_two_names_are_uncorrelated() -> None:
    one, other = stream(0, "one").standard_normal(100_000), stream(0, "other").standard_normal(100_000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.015  # five standard errors
