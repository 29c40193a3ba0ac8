"""D-VAE: its parts against their definitions, and that it takes unlearnable noise off real digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import digits
from torch.distributions import Normal, kl_divergence

from decant import dvae
from decant.attacks import lsp
from decant.settings import PurifySettings
from decant.tables import Images

SMALL = PurifySettings(preset="small", kld_limit=1.0)


def with_noise(images: Images, strength: float) -> Images:
    settings = lsp.Settings(strength=strength, patch=4)
    return lsp.poison(images, settings, np.random.default_rng(0), np.zeros(len(images), bool)).images


def test_kld_is_nats_per_latent_position() -> None:
    """Against torch.distributions: summed over channels, averaged over batch and positions."""
    train, _ = digits()
    model = dvae.DVAE((16, 16, 1), 10, dvae.recipe(SMALL, train)).eval()
    x = torch.rand(3, 1, 16, 16)
    _, _, kld = model(x, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    mean, log_variance = model.moments(model.encoder(x)).chunk(2, dim=1)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1).mean()
    assert kld.item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_is_the_official_objective() -> None:
    x, x_hat, p_hat = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    kld = torch.tensor(2.0)
    distortion = ((x - x_hat) ** 2).mean() + (((x_hat + p_hat).clamp(0, 1) - x) ** 2).mean()
    free = dvae.loss(x, x_hat, p_hat, kld, kld_limit=3.0, with_floor=False)
    assert free.item() == pytest.approx((distortion + 0.01 * 3.0).item())  # below the limit: the limit itself
    tight = dvae.loss(x, x_hat, p_hat, kld, kld_limit=0.5, with_floor=False)
    assert tight.item() == pytest.approx((distortion + 0.5 * 2.0).item())  # limits below 0.99 weigh 0.5
    floored = dvae.loss(x, x_hat, 0 * p_hat, kld, kld_limit=3.0, with_floor=True)
    assert floored.item() == pytest.approx((2 * ((x - x_hat) ** 2).mean() + 0.03 + 0.002).item())


def test_rate_below_the_limit_has_no_gradient() -> None:
    kld = torch.tensor(0.9, requires_grad=True)
    x = torch.rand(1, 1, 2, 2)
    dvae.loss(x, x, 0 * x, kld, kld_limit=1.0, with_floor=False).backward()
    assert kld.grad is not None and kld.grad.item() == 0


def test_official_preset_has_the_official_size() -> None:
    """0.852 M parameters and an embedding of K x 128 x 16 x 16 on CIFAR-10, counted from the official architecture."""
    recipe = dvae.Recipe(width=64, batch_size=128, epochs=60, embedding_lr=1, light=False)
    model = dvae.DVAE((32, 32, 3), 10, recipe)
    assert model.embedding.shape == (10, 128, 16, 16)
    assert sum(p.numel() for p in model.parameters()) - model.embedding.numel() == pytest.approx(852_000, rel=0.005)


@pytest.mark.parametrize("light", [True, False])
def test_odd_sizes_come_back_whole(light: bool) -> None:
    model = dvae.DVAE((15, 13, 3), 4, dvae.Recipe(width=8, batch_size=4, epochs=1, embedding_lr=1, light=light))
    x_hat, p_hat, _ = model(torch.rand(2, 3, 15, 13), torch.tensor([0, 3]), torch.Generator())
    assert x_hat.shape == p_hat.shape == (2, 3, 15, 13)


def test_auto_preset_goes_by_size() -> None:
    train, _ = digits()
    auto = PurifySettings(preset="auto")
    assert dvae.recipe(auto, train).width == 16
    large = replace(train, pixels=np.zeros((len(train), 32, 32, 3), np.uint8))
    assert dvae.recipe(auto, large).width == 64


def test_stored_pixels_are_rounded_not_truncated() -> None:
    x = torch.tensor([[[[0.0, 0.4999 / 255, 0.5001 / 255, 1.2]]]])
    assert dvae.to_uint8(x).ravel().tolist() == [0, 0, 1, 255]


def test_two_stages_take_unlearnable_noise_off() -> None:
    """x3 is closer to the clean image than the received one was, and a linear probe no longer reads the noise."""
    train, _ = digits()
    received = with_noise(train, 24)
    first = dvae.fit(received, replace(SMALL, epochs=6), seed=0)
    x1, p1 = dvae.first_stage(first, received, seed=0)
    second = dvae.fit(x1, replace(SMALL, epochs=6, kld_limit=3.0), seed=1)
    x3, _ = dvae.second_stage(second, x1, seed=1)
    noise = received.pixels.astype(np.float64) - train.pixels
    left = x3.pixels.astype(np.float64) - train.pixels
    removed = p1.astype(np.float64)
    assert (noise * removed).sum() > 0  # the disentangled perturbation points along the planted one
    class_noise = np.stack([noise[train.labels == k].mean(0) for k in range(10)])[train.labels]
    share_left = (left * class_noise).sum() / (noise * class_noise).sum()
    assert share_left < 0.6  # of the class-wise pattern that made the set unlearnable


def test_same_seed_same_pixels() -> None:
    few = digits()[0].select(np.arange(128))
    settings = replace(SMALL, epochs=1)
    runs = [dvae.first_stage(dvae.fit(few, settings, seed=3), few, seed=3) for _ in range(2)]
    assert (runs[0][0].pixels == runs[1][0].pixels).all() and (runs[0][1] == runs[1][1]).all()
