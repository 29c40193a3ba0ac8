"""The Siamese network: shapes, symmetry, and the batched losses and scores against plain loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from decant.labeltrust.augmentation import augment
from decant.labeltrust.siamese import (
    EMBED_BATCH,
    FEATURES,
    PAIR_FLOATS,
    Pool,
    Siamese,
    class_scores,
    draw_pairs,
    embed,
    episode_loss,
    fit,
)

MODES = ("paper", "plus")


def pool_of(counts: list[int], shape: tuple[int, int, int] = (16, 16, 1)) -> Pool:
    """Random pixels, classes in mixed order."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    columns = columns[torch.randperm(len(columns), generator=generator)]
    height, width, channels = shape
    x = torch.randint(0, 256, (len(columns), channels, height, width), generator=generator).to(torch.uint8)
    x[:, 0, 0, 0] = columns.to(torch.uint8)  # a row's class can be read from its first pixel
    return Pool.of(x, columns, len(counts))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 1), (16, 16, 1), (28, 28, 1), (32, 32, 3), (100, 100, 3)])
def test_any_size_from_eight_pixels_on_is_embedded(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    assert Siamese(shape, "plus").embed(torch.rand(3, channels, height, width)).shape == (3, FEATURES)


@pytest.mark.parametrize("mode", MODES)
def test_the_head_is_symmetric(mode: str) -> None:
    model = Siamese((16, 16, 1), mode)
    a, b = torch.randn(2, 50, FEATURES)
    torch.testing.assert_close(model.pair_logits(a, b), model.pair_logits(b, a), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_class_scores_equal_a_loop_over_pairs(mode: str) -> None:
    model, references = Siamese((16, 16, 1), mode).eval(), pool_of([2, 5, 3])
    x = pool_of([40]).x
    found = class_scores(model, x, references)
    z, z_references = embed(model, x), embed(model, references.x)
    classes = references.x[:, 0, 0, 0].tolist()
    for row in (0, 17, 39):
        for label in range(3):
            pairs = [model.pair_logits(z[row], z_references[r]) for r in range(10) if classes[r] == label]
            values = [pair.sigmoid() if mode == "paper" else pair for pair in pairs]
            assert found[row, label].item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-5)


def test_scores_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, references, x = Siamese((16, 16, 1), "plus").eval(), pool_of([4, 4]), pool_of([50]).x
    whole = class_scores(model, x, references)
    monkeypatch.setitem(PAIR_FLOATS, "cpu", 3 * 8 * 2 * FEATURES)
    monkeypatch.setitem(EMBED_BATCH, "cpu", 7)
    torch.testing.assert_close(class_scores(model, x, references), whole)


def test_episode_loss_equals_its_definition() -> None:
    classes, k = 3, 4
    n = classes * k
    half = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = half + half.T
    label = [i // k for i in range(n)]
    positives = [F.softplus(-logits[i, j]) for i in range(n) for j in range(n) if i != j and label[i] == label[j]]
    negatives, listwise = [], []
    for i in range(n):
        others = sorted((F.softplus(logits[i, j]) for j in range(n) if label[i] != label[j]), reverse=True)
        negatives += others[: len(others) // 2]
        means = [
            torch.stack([logits[i, j] for j in range(n) if label[j] == c and j != i]).mean() for c in range(classes)
        ]
        listwise.append(-F.log_softmax(torch.stack(means), 0)[label[i]])
    plain = sum(torch.stack(part).mean() for part in (positives, negatives, listwise))
    assert episode_loss(logits, classes).item() == pytest.approx(float(plain), rel=1e-9)


def test_a_pool_draws_from_the_classes_that_are_asked_for() -> None:
    pool = pool_of([1, 7, 3])
    rows = pool.draw(torch.tensor([2, 0]), 200, torch.Generator().manual_seed(0))
    found = pool.x[rows][:, :, 0, 0, 0]
    assert (found == torch.tensor([[2], [0]])).all()
    assert len(rows[0].unique()) == 3


def test_paper_pairs_are_balanced_and_never_a_row_with_itself() -> None:
    pool = pool_of([2, 2, 6])
    rows, same = draw_pairs(pool, 600, torch.Generator().manual_seed(0))
    first, second = pool.x[rows][:, :, 0, 0, 0]
    assert same.sum() == 300
    assert ((first == second) == same).all()
    assert (rows[0] != rows[1]).all()


def test_augmentation_touches_each_row_by_itself_and_follows_its_generator() -> None:
    x = torch.rand(6, 1, 16, 16)
    changed = x.clone()
    changed[2] = 0.5
    one, again, other = (augment(batch, torch.Generator().manual_seed(3)) for batch in (x, x, changed))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    same = (one == other).flatten(1).all(1)
    assert same.tolist() == [True, True, False, True, True, True]


def test_augmentation_may_hide_any_corner() -> None:
    """A trigger lives in a corner: over many draws every one of the four must be erased now and then."""
    white = torch.ones(3000, 1, 16, 16)
    seen = augment(white, torch.Generator().manual_seed(0))
    for rows in (slice(0, 2), slice(-2, None)):
        for columns in (slice(0, 2), slice(-2, None)):
            hidden = (seen[:, 0, rows, columns].mean((1, 2)) < 0.6).float().mean()
            assert hidden > 0.003, (rows, columns)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_few_steps_are_a_training_too(steps: int) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    fit([weight], lambda: (weight**2).sum(), rate=0.1, steps=steps, on_step=lambda: None)
    assert 0 < weight < 1


def test_the_global_random_state_is_left_alone() -> None:
    from decant.labeltrust.siamese import train

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train([(pool_of([3, 3]), 4)], (16, 16, 1), mode="plus", steps=1, seed=0)
    assert torch.rand(1) == expected
    assert np.isfinite(expected.item())
