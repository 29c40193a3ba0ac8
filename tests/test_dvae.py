"""D-VAE's network and objective against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import digits
from torch.distributions import Normal, kl_divergence

from decant.purify import dvae
from decant.purify.dvae import DVAE, PRESETS, Recipe
from decant.purify.settings import PurifySettings

TINY = Recipe(width=8, batch_size=4, epochs=1)


@pytest.mark.parametrize("chosen", [PRESETS["small"], replace(TINY, downs=2), replace(TINY, patch=4)])
def test_kld_is_nats_per_pixel(chosen: Recipe) -> None:
    """Against torch.distributions: summed over the latent, divided by the pixels that it stands for."""
    model = DVAE((16, 16, 1), 10, chosen).eval()
    x = torch.rand(3, 1, 16, 16)
    _, _, kld = model(x, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    mean, log_variance = model.moments(model.encoder(x)).chunk(2, dim=1)
    assert mean.shape[2:] == (16 // chosen.stride, 16 // chosen.stride)
    total = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum()
    assert kld.item() == pytest.approx(total.item() / (3 * 16 * 16), rel=1e-4)


def test_loss_is_the_official_objective() -> None:
    """In the official code's unit: nats per position of a grid at half resolution, four times those per pixel."""
    x, x_hat, p_hat = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    kld = torch.tensor(2.0 / 4)
    distortion = ((x - x_hat) ** 2).mean() + (((x_hat + p_hat).clamp(0, 1) - x) ** 2).mean()
    free = dvae.loss(x, x_hat, p_hat, kld, kld_limit=3.0 / 4, with_floor=False)
    assert free.item() == pytest.approx((distortion + 0.01 * 3.0).item())  # below the limit: the limit itself
    tight = dvae.loss(x, x_hat, p_hat, kld, kld_limit=0.5 / 4, with_floor=False)
    assert tight.item() == pytest.approx((distortion + 0.5 * 2.0).item())  # limits below 0.99 weigh 0.5
    floored = dvae.loss(x, x_hat, 0 * p_hat, kld, kld_limit=3.0 / 4, with_floor=True)
    assert floored.item() == pytest.approx((2 * ((x - x_hat) ** 2).mean() + 0.03 + 0.002).item())


def test_eq14_neither_clamps_nor_floors() -> None:
    x, x_hat = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    p_hat = torch.full((1, 1, 2, 2), -2.0)
    found = dvae.loss(x, x_hat, p_hat, torch.tensor(0.0), kld_limit=0.0, with_floor=True, objective="eq14")
    assert found.item() == pytest.approx(0.5**2 + (-0.5 + 2.0) ** 2)


def test_rate_below_the_limit_has_no_gradient() -> None:
    kld = torch.tensor(0.2, requires_grad=True)
    x = torch.rand(1, 1, 2, 2)
    dvae.loss(x, x, 0 * x, kld, kld_limit=0.25, with_floor=False).backward()
    assert kld.grad is not None and kld.grad.item() == 0


def test_paper_preset_has_the_official_size() -> None:
    """0.852 M parameters and an embedding of K x 128 x 16 x 16 on CIFAR-10, counted from the official architecture."""
    model = DVAE((32, 32, 3), 10, PRESETS["paper"])
    assert model.embedding.values.shape == (10, 128, 16, 16)
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.embedding.parameters())
    assert rest == pytest.approx(852_000, rel=0.005)


def test_one_grouped_decoder_is_two_decoders() -> None:
    """Against the same layers written twice, with the weights of either group."""
    chosen = replace(TINY, downs=2)
    twin = dvae.grouped_decoders(chosen, 3)
    features = chosen.width * 2**chosen.downs
    z, shifted = torch.rand(2, features, 4, 4), torch.rand(2, features, 4, 4)
    both = twin(torch.cat([z, shifted], 1)).chunk(2, dim=1)
    for half, (inputs, found) in enumerate(zip((z, shifted), both, strict=True)):
        value = inputs
        for layer in twin:
            if isinstance(layer, torch.nn.Conv2d):
                n = layer.out_channels // 2
                weight, bias = layer.weight[half * n : (half + 1) * n], layer.bias[half * n : (half + 1) * n]
                value = torch.nn.functional.conv2d(value, weight, bias, padding=1)
            else:
                value = layer(value)
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("chosen", [TINY, replace(TINY, as_published=True), replace(TINY, downs=2), PRESETS["px224"]])
def test_odd_sizes_come_back_whole(chosen: Recipe) -> None:
    model = DVAE((15, 13, 3), 4, chosen)
    x_hat, p_hat, _ = model(torch.rand(2, 3, 15, 13), torch.tensor([0, 3]), torch.Generator())
    assert x_hat.shape == p_hat.shape == (2, 3, 15, 13)


def test_low_rank_embedding_is_the_sum_of_its_products() -> None:
    embedding = dvae.ClassEmbedding(3, 5, (4, 2), rank=2)
    expected = sum(
        embedding.factors[1, r][:, None, None] * embedding.maps[r].reshape(4, 2) for r in range(2)
    )  # fmt: skip
    torch.testing.assert_close(embedding(torch.tensor([1]))[0], expected)
    assert embedding.values.numel() == 0


@pytest.mark.parametrize(
    ("shape", "rows", "preset"),
    [
        ((16, 16, 1), 2_000, "small"),
        ((28, 28, 1), 60_000, "standard"),
        ((32, 32, 3), 5_000, "small"),
        ((32, 32, 3), 50_000, "standard"),
        ((64, 64, 3), 5_000, "px64"),
        ((224, 224, 3), 100, "px224"),
    ],
)
def test_auto_preset_goes_by_size(shape: tuple[int, int, int], rows: int, preset: str) -> None:
    one = digits()[0].select(np.zeros(rows, int))
    images = one.with_pixels(np.broadcast_to(np.zeros((), np.uint8), (rows, *shape)))
    assert dvae.recipe(PurifySettings(preset="auto"), images) == PRESETS[preset]
