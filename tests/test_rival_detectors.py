"""The paper's Δ-Influence, and the other detectors that the default is compared with."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import torch
from samples import INFO, digits
from scenes import DEFAULT, Scene, precision_recall
from sklearn.metrics import roc_auc_score
from torch import nn

from decant.data.images import Images
from decant.detectors import delta, frequency, trak
from decant.detectors.base import DetectionCase
from decant.detectors.detect import detect

# delta ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, -0.5])
def test_the_order_statistic_is_the_vote_made_continuous(tau: float) -> None:
    s = torch.randn(2, 11, 200, generator=torch.Generator().manual_seed(0))  # two points, 10 copies, 200 rows
    s[:, 0] += 2
    votes = (s[:, 1:] - s[:, :1] < tau).sum(1)
    for needed in (1, 8, 10):
        assert torch.equal(delta.order_statistic(s, needed) > -tau, votes >= needed)
    assert 0 < (votes >= 8).sum() < 400


@pytest.mark.parametrize("varied", ["both", "labels", "images"])
def test_the_ablations_vary_the_image_or_the_label_alone(varied: str, backdoored: Scene) -> None:
    one = backdoored.affected.select(np.arange(1))
    x, labels = delta.queries_of(one, backdoored.train, 20, seed=0, varied=varied)
    assert (labels[1:] == 5).all() if varied == "images" else (labels[1:] != 5).all()
    same = [torch.equal(copy, x[0]) for copy in x[1:]]
    assert all(same) if varied == "labels" else not any(same)


def test_copies_carry_another_label_and_follow_their_point(backdoored: Scene) -> None:
    x, labels = delta.queries_of(backdoored.affected, backdoored.train, 20, seed=0)
    assert x.shape == (4 * 21, 1, 16, 16) and labels.shape == (84,)
    own = np.arange(84) % 21 == 0
    pixels = torch.from_numpy(backdoored.affected.pixels).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(x[torch.from_numpy(own)], pixels)
    assert (labels[own] == 5).all() and (labels[~own] != 5).all() and len(set(labels.tolist())) == 10
    again, _ = delta.queries_of(backdoored.affected, backdoored.train, 20, seed=0)
    other, _ = delta.queries_of(backdoored.affected, backdoored.train, 20, seed=1)
    assert torch.equal(x, again) and not torch.equal(x, other)


def test_transformations_leave_the_global_random_state_alone(backdoored: Scene) -> None:
    before = torch.get_rng_state()
    delta.queries_of(backdoored.affected, backdoored.train, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_seven_transformations_of_a_coloured_image() -> None:
    """Inverting is 1 - x of the normalised values, as in the official code, and red and green change places."""
    image = torch.rand(3, 16, 16)
    copies = delta.transformed(image, 60, np.random.default_rng(0))
    same = [bool(torch.allclose(copy, image[[1, 0, 2]])) for copy in copies]
    assert any(same) and any(torch.allclose(copy, 1 - image) for copy in copies)


@pytest.mark.parametrize("side", [16, 28])
def test_the_elastic_transformation_moves_a_small_picture_by_the_same_share(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its displacement field, in units of half the picture's side, beside that of the official 32 x 32."""
    from torchvision import transforms as T

    made: list[T.ElasticTransform] = []
    plain = T.ElasticTransform.__init__

    def noted(self: T.ElasticTransform, *given: object, **named: object) -> None:
        plain(self, *given, **named)
        made.append(self)

    monkeypatch.setattr(T.ElasticTransform, "__init__", noted)
    spread = {}
    for size in (side, 32):
        delta.transformed(torch.rand(1, size, size), 1, np.random.default_rng(0))
        torch.manual_seed(0)
        fields = [T.ElasticTransform.get_params(made[-1].alpha, made[-1].sigma, [size, size]) for _ in range(40)]
        spread[size] = float(torch.cat(fields).std())
    assert spread[side] == pytest.approx(spread[32], rel=0.25)


def test_delta_finds_the_backdoor_with_low_precision(backdoored: Scene) -> None:
    """The paper's own run: one point, 50 copies, no damping, no label filter: all poisons, and many others."""
    settings = replace(DEFAULT, detector="delta", damping=0.0, same_label=False)
    one = backdoored.affected.select(np.arange(1))
    paper = detect(backdoored.model, backdoored.train, one, settings, seed=0)
    _, recall = precision_recall(paper.flagged, backdoored.poisoned)
    assert recall >= 0.9 and paper.flagged.mean() < 0.3
    filtered = detect(backdoored.model, backdoored.train, one, replace(settings, same_label=True), seed=0)
    assert np.array_equal(filtered.flagged, paper.flagged & (backdoored.train.labels == 5))


@pytest.mark.parametrize("side", [4, 8, 28, 40])
def test_transformations_fit_images_of_any_size(side: int) -> None:
    copies = delta.transformed(torch.rand(1, side, side), 30, np.random.default_rng(0))
    assert copies.shape == (30, 1, side, side) and copies.isfinite().all()


# the rivals ----------------------------------------------------------------------------------------------------------


def test_a_threshold_lies_above_all_but_a_thousandth_of_the_background(backdoored: Scene) -> None:
    """And the false alarms that are stated are those of the background, in proportion."""
    for name in ("ekfac_threshold", "trak"):
        settings = replace(DEFAULT, detector=name, same_label=False)
        found = detect(
            backdoored.model, backdoored.train, backdoored.affected, settings, seed=0, fitted=backdoored.fitted
        )
        others = backdoored.train.labels != 5
        assert found.flagged[others].sum() == 2  # of 1,251
        assert found.false_alarms == pytest.approx(2 / others.sum() * len(others))
        threshold = found.scores[found.flagged].min()
        assert (found.scores[~found.flagged] < threshold).all() and abs(np.median(found.scores[others])) < 1e-6


def test_trak_without_projection_is_influence_through_all_layers() -> None:
    """With as many random directions as weights, Φ(Φ'Φ)⁻¹Φ' is what it is for the gradients themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 1), np.uint8)
    train = Images(np.arange(40), pixels, np.arange(40, dtype=np.int32) % 3, replace(INFO, class_names=tuple("abc")))
    case = DetectionCase(model=model, train=train, settings=DEFAULT, seed=0, on_rows=lambda rows: None)
    x, y = case.rows
    phi = trak.projected(case, x, y).double()
    exact = []
    for image, label in zip(x.float() / 255, y, strict=True):
        logits = model(image[None])[0]
        p = logits.softmax(0)[label]
        exact.append(
            torch.cat([g.flatten() for g in torch.autograd.grad((p / (1 - p)).log(), list(model.parameters()))])
        )
    G = torch.stack(exact).double()
    hat = [M @ torch.linalg.pinv(M.T @ M, rtol=1e-6) @ M.T for M in (phi, G)]
    torch.testing.assert_close(*hat, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["activation_clustering", "spectral_signature"])
def test_a_class_with_a_backdoor_gives_it_away_in_its_features(name: str, backdoored: Scene, innocent: Scene) -> None:
    settings = replace(DEFAULT, detector=name)
    found = detect(backdoored.model, backdoored.train, backdoored.affected, settings, seed=0)
    precision, recall = precision_recall(found.flagged, backdoored.poisoned)
    assert precision >= 0.95 and recall >= 0.6, found.note
    other = detect(innocent.model, innocent.train, innocent.affected, settings, seed=0)
    assert not other.flagged.any() and "nothing found" in other.note and other.false_alarms == 0


def test_frequencies_are_scipys() -> None:
    x = torch.rand(3, 2, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        frequency.dct(x).numpy(), scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"), atol=1e-5, rtol=0
    )


def test_manipulation_stays_in_range_and_leaves_no_image_alone() -> None:
    x = torch.rand(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = frequency.manipulated(x, torch.Generator().manual_seed(1))
    assert y.min() >= 0 and y.max() <= 1
    changed = (x != y).flatten(1).float().mean(1)
    assert (changed > 0).all() and (changed < 0.1).any() and (changed > 0.9).any()  # blocks, and whole pictures


def test_frequency_tells_manipulated_images_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "EPOCHS", 3)
    train, test = digits()
    network = frequency.trained(train, seed=0)
    manipulated = frequency.manipulated(
        torch.from_numpy(test.pixels).permute(0, 3, 1, 2) / 255, torch.Generator().manual_seed(0)
    )
    pixels = (255 * manipulated).round().byte().permute(0, 2, 3, 1).numpy()
    plain, seen = (frequency.manipulated_probability(network, p) for p in (test.pixels, pixels))
    assert roc_auc_score(np.repeat([0, 1], len(test)), np.concatenate([plain, seen])) > 0.8
