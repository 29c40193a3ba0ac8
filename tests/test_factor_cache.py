"""Factors on disk: what finds them again, what does not, and a run that was killed in the middle."""

import copy
from pathlib import Path

import pytest
import torch
from nets import rows, small_net
from torch import nn

from decant.influence import ekfac, factor_cache
from decant.influence.factor_cache import cached


class Count:
    """How many rows were passed through the model; stops the run at a given one."""

    def __init__(self, stop_at: int | None = None):
        self.rows, self.stop_at = 0, stop_at

    def __call__(self, rows: int) -> None:
        self.rows += rows
        if self.stop_at is not None and self.rows >= self.stop_at:
            raise KeyboardInterrupt


def test_same_input_is_found_again(tmp_path: Path) -> None:
    model, train = small_net(padding=1), rows()
    first, count = cached(tmp_path, model, train), Count()
    again = cached(tmp_path, copy.deepcopy(model), train, memory=1, on_rows=count)
    assert count.rows == 0
    losses = ekfac.sampled_cross_entropy(len(train[0]), seed=0)
    plain = ekfac.fit(model, train[0], losses)
    assert set(first) == set(again) == set(plain)
    for name in plain:
        for found in (first[name], again[name]):
            assert all(torch.equal(getattr(found, part), getattr(plain[name], part)) for part in vars(found))


def test_what_was_made_from_other_things_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_cache, "KEPT", 100)
    model, (x, y) = small_net(padding=1), rows()
    other_model, other_x, other_y = copy.deepcopy(model), x.clone(), y.clone()
    with torch.no_grad():
        other_model[2].weight[0, 0, 0, 0] += 1e-12
    other_x[3, 1, 2, 2] += 1e-12
    other_y[0] = (other_y[0] + 1) % 3
    other_layout = nn.Sequential(*[nn.ReLU6(True) if isinstance(m, nn.ReLU) else m for m in copy.deepcopy(model)])
    given = [
        (model, (x, y), {}),
        (other_model, (x, y), {}),
        (other_layout.eval(), (x, y), {}),
        (model, (other_x, y), {}),
        (model, (x, other_y), {}),
        (model, (x, y), {"seed": 1}),
        (model, (x, y), {"fisher": "empirical"}),
        (model, (x, y), {"basis_rows": 6}),
        (model, (x, y), {"normalisation": True}),
    ]
    for files, (net, train, settings) in enumerate(given, start=1):
        cached(tmp_path, net, train, **settings)
        assert len(list(tmp_path.iterdir())) == files


def test_only_the_latest_files_stay(tmp_path: Path) -> None:
    model, train = small_net(padding=1), rows()
    for seed in range(factor_cache.KEPT + 3):
        cached(tmp_path, model, train, seed=seed)
    assert len(list(tmp_path.iterdir())) == factor_cache.KEPT + 1  # those that were there, and the new one
    count = Count()
    cached(tmp_path, model, train, seed=factor_cache.KEPT + 2, on_rows=count)
    assert count.rows == 0


@pytest.mark.parametrize(("stop_at", "passes_left"), [(6, 2), (18, 1)], ids=["in the first pass", "in the second"])
def test_a_killed_run_goes_on_from_what_it_had(tmp_path: Path, stop_at: int, passes_left: int) -> None:
    model, train, count = small_net(padding=1), rows(12), Count()
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, model, train, memory=1, on_rows=Count(stop_at))
    resumed = cached(tmp_path, model, train, memory=1, on_rows=count)
    assert count.rows == passes_left * 12
    undisturbed = cached(tmp_path / "elsewhere", model, train, memory=1)
    assert all(torch.equal(resumed[name].Lambda, undisturbed[name].Lambda) for name in undisturbed)
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 1
