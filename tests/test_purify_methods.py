"""Purification methods against unlearnable examples: one contract for all, and each against an independent truth."""

import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from samples import digits
from scipy import fft
from torch import nn
from torch.nn import functional as F

from decant.attacks import lsp
from decant.data.images import Images
from decant.errors import SettingsError, StageError
from decant.models import networks, training
from decant.models.augment import random_affine
from decant.models.settings import TrainSettings
from decant.models.training import Batch
from decant.purify.dvae import PRESETS
from decant.purify.methods import adversarial, avatar, iss, lfu, staged, ueraser
from decant.purify.methods import base as methods

QUICK = TrainSettings(epochs=1)


@cache
def few() -> Images:
    return digits()[0].select(np.arange(96))


@cache
def perturbed() -> Images:
    """Digits under a strong LSP: a linear model separates the classes by the perturbation alone."""
    train, _ = digits()
    rng = np.random.default_rng(0)
    return lsp.poison(train, lsp.Settings(strength=48), rng, np.zeros(len(train), bool)).images


@cache
def coloured(height: int = 12, width: int = 16) -> Images:
    """Smooth colour images that are not square."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (40, 3, 3, 4)).astype(np.float32))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)
    rows = few().select(np.arange(40))
    return rows.with_pixels(np.ascontiguousarray(smooth.permute(0, 2, 3, 1).numpy()))


def batch_of(images: Images, *, progress: float = 0.0, seed: int = 0) -> Batch:
    inputs = training.as_float(training.to_device(images.pixels))
    labels = training.labels_to_device(images.labels)
    generator = torch.Generator().manual_seed(seed)
    return Batch(inputs=inputs, labels=labels, progress=progress, generator=generator)


def tiny_diffusion(folder: Path, shape: tuple[int, int, int]) -> str:
    """A diffusion model of random weights, saved as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    height, width, channels = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    target = folder / f"{height}x{width}x{channels}"
    unet.save_pretrained(target, safe_serialization=True)
    return str(target)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", replace(PRESETS["small"], steps=3))
    for images in (few(), coloured()):
        settings = {"checkpoint": tiny_diffusion(tmp_path, images.shape), "noise_steps": 2} if name == "avatar" else {}
        before = images.pixels.copy(), images.labels.copy(), images.ids.copy()
        if methods.cleans(name):
            first, second = (methods.clean(name, images, seed=1, **settings) for _ in range(2))
            assert np.array_equal(first.pixels, second.pixels)
            assert first.pixels.shape == images.pixels.shape and first.pixels.dtype == np.uint8
            assert np.array_equal(first.ids, images.ids) and np.array_equal(first.labels, images.labels)
            assert first.info == images.info
        models = [methods.train_with(name, images, QUICK, seed=1, **settings) for _ in range(2)]
        logits, again = (training.predict(model, images.pixels) for model in models)
        assert logits.shape == (len(images), images.classes) and np.isfinite(logits).all()
        assert np.array_equal(logits, again) and not models[0].training
        after = images.pixels, images.labels, images.ids
        assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_unknown_names_and_parameters_are_refused_in_one_line() -> None:
    with pytest.raises(SettingsError, match=r"one of adversarial, .*, 'prayer' found"):
        methods.train_with("prayer", few(), QUICK, seed=0)
    with pytest.raises(SettingsError, match=r"jpeg.quality: whole number \(1 to 100\) expected, 0 found"):
        methods.clean("jpeg", few(), seed=0, quality=0)
    with pytest.raises(
        SettingsError, match=r"adversarial: changes the training and not the images .* cleaned by avatar, bdr"
    ):
        methods.clean("adversarial", few(), seed=0)


def test_none_trains_as_without_the_family() -> None:
    ours = methods.train_with("none", few(), QUICK, seed=4)
    plain = training.train_classifier(few(), QUICK, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_bit_depth_reduction_is_floor_of_scaled_pixels(bits: int) -> None:
    images = few().with_pixels(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(96, 0))
    found = methods.clean("bdr", images, seed=0, bits=bits).pixels[0].ravel()
    levels = 2**bits
    assert found.tolist() == [round(levels * pixel // 255 * 255 / levels) for pixel in range(256)]


def test_gray_is_what_pillow_makes_of_it() -> None:
    images = coloured()
    found = methods.clean("gray", images, seed=0).pixels
    for image, gray in zip(images.pixels, found, strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L"))
        assert all(np.array_equal(gray[..., channel], expected) for channel in range(3))
    assert methods.clean("gray", few(), seed=0).pixels is few().pixels


# Luminance of quality 50, ITU-T T.81 annex K.1; quality 10 is five times as coarse.
QUANTA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""


def jpeg_by_the_book(gray: np.ndarray) -> np.ndarray:
    """(h, w) levels through 8 x 8 cosine transforms rounded to quality 10's steps: what a JPEG file stores."""
    quanta = np.minimum(5 * np.array(QUANTA.split(), float).reshape(8, 8), 255)
    found = np.empty(gray.shape)
    for top in range(0, gray.shape[0], 8):
        for left in range(0, gray.shape[1], 8):
            window = np.s_[top : top + 8, left : left + 8]
            coefficients = np.rint(fft.dctn(gray[window] - 128.0, norm="ortho") / quanta) * quanta
            found[window] = fft.idctn(coefficients, norm="ortho") + 128
    return found.clip(0, 255)


def test_jpeg_is_what_the_standard_says() -> None:
    images = few().select(np.arange(40))
    found = methods.clean("jpeg", images, seed=0).pixels[..., 0].astype(float)
    expected = np.stack([jpeg_by_the_book(image) for image in images.pixels[..., 0]])
    assert np.abs(found - expected).mean() < 1 < 5 < np.abs(found - images.pixels[..., 0]).mean()
    colour = coloured(16, 24)
    brightness = methods.clean("jpeg", colour, seed=0).pixels @ (0.299, 0.587, 0.114)
    expected = np.stack([jpeg_by_the_book(image) for image in colour.pixels @ (0.299, 0.587, 0.114)])
    assert np.abs(brightness - expected).mean() < 3


def test_two_channels_are_refused_where_a_picture_is_needed() -> None:
    images = coloured().with_pixels(coloured().pixels[..., :2])
    for name in ("gray", "jpeg"):
        with pytest.raises(StageError, match="1 or 3 channels expected, 2 found"):
            methods.clean(name, images, seed=0)


def test_iss_without_a_probe_is_jpeg_and_with_one_the_best_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[int, str] = {}

    def trained(member, images, train_settings, seed):  # type: ignore[no-untyped-def]
        model = nn.Identity()
        made[id(model)] = member.__name__.rsplit(".", 1)[1]
        return model

    monkeypatch.setattr(iss, "_trained", trained)
    assert made[id(methods.train_with("iss", few(), QUICK, seed=0))] == "jpeg"
    for best in ("bdr", "gray", "jpeg"):
        monkeypatch.setattr(iss, "accuracy", lambda model, probe, best=best: float(made[id(model)] == best))
        assert made[id(methods.train_with("iss", few(), QUICK, seed=0, probe=few()))] == best


def linear_probe_accuracy(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of a softmax regression, fitted by full-batch gradient descent and judged on the rows it saw."""
    weights = torch.zeros(x.shape[1], 10, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.5, momentum=0.9)
    for _ in range(60):
        loss = F.cross_entropy(x @ weights, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(((x @ weights).argmax(1) == y).float().mean())


def test_lfu_projects_out_what_a_linear_model_sees() -> None:
    x, y = batch_of(perturbed()).inputs.flatten(1), training.labels_to_device(perturbed().labels)
    q = lfu.linear_directions(perturbed(), lfu.Settings(), seed=0)
    assert torch.allclose(q.T @ q, torch.eye(10), atol=1e-5)
    projected = lfu.project(x, q)
    assert (projected @ q).abs().max() < 1e-4 < 0.1 < (x @ q).abs().mean()
    assert torch.allclose(lfu.project(projected, q), projected, atol=1e-5)
    assert linear_probe_accuracy(x, y) > 0.95
    assert linear_probe_accuracy(projected, y) < 0.3
    stored = batch_of(methods.clean("lfu", perturbed(), seed=0)).inputs.flatten(1)
    assert (stored - projected.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


def test_lfu_augmentation_keeps_the_range_and_cutmix_its_books() -> None:
    x = batch_of(coloured()).inputs
    generator = torch.Generator().manual_seed(0)
    strong = lfu.jittered(random_affine(x, lfu.AFFINE, generator), generator)
    assert strong.shape == x.shape and strong.min() >= 0 and strong.max() <= 1 and not torch.equal(strong, x)
    for _ in range(20):
        marked = torch.arange(40.0)[:, None, None, None].expand(40, 1, 12, 16)  # every pixel tells whose it is
        mixed, partners, own = lfu.cutmixed(marked, generator)
        rows = torch.arange(40)
        shares = (mixed == rows[:, None, None, None]).float().mean((1, 2, 3))
        assert torch.allclose(shares[partners != rows], torch.tensor(own))
        others = (mixed == partners[:, None, None, None]).float().mean((1, 2, 3))
        assert torch.allclose(others[partners != rows], torch.tensor(1 - own), atol=1e-6)


def test_adversarial_examples_stay_near_and_raise_the_loss() -> None:
    model = training.train_classifier(digits()[0], TrainSettings(epochs=2), seed=0)
    batch, settings = batch_of(few()), adversarial.Settings()
    found = adversarial.worst_nearby(model, batch, settings)
    assert (found - batch.inputs).abs().max() <= 8 / 255 + 1e-6 and found.min() >= 0 and found.max() <= 1
    clean, attacked = (F.cross_entropy(model(x), batch.labels).item() for x in (batch.inputs, found))
    assert attacked > 1.5 * clean
    assert torch.allclose(found, naive_attack(model, batch_of(few()), settings), atol=1e-6)


def naive_attack(model: nn.Module, batch: Batch, settings: adversarial.Settings) -> torch.Tensor:
    """PGD image by image and bound by bound, as one would write it on a blackboard."""
    starts = torch.randn(batch.inputs.shape, generator=batch.generator) * settings.step / 255
    found = []
    for x, start, label in zip(batch.inputs, starts, batch.labels, strict=True):
        point = torch.clamp(torch.max(torch.min(x + start, x + 8 / 255), x - 8 / 255), 0, 1)
        for _ in range(settings.iterations):
            point = point.clone().requires_grad_(True)
            F.cross_entropy(model(point[None]), label[None]).backward()
            assert point.grad is not None
            moved = point.detach() + settings.step / 255 * point.grad.sign()
            point = torch.clamp(torch.max(torch.min(moved, x + 8 / 255), x - 8 / 255), 0, 1)
        found.append(point)
    return torch.stack(found)


def test_adversarial_training_is_harder_to_attack() -> None:
    train, test = digits()
    rows, settings = train.select(np.arange(500)), TrainSettings(epochs=4)
    strong = adversarial.Settings(radius=24, step=8, iterations=4)
    plain = training.train_classifier(rows, settings, seed=0)
    robust = methods.train_with("adversarial", rows, settings, seed=0, radius=24, step=8, iterations=4)

    def accuracy_under_attack(model: nn.Module) -> float:
        batch = batch_of(test.select(np.arange(200)))
        return float((model(adversarial.worst_nearby(model, batch, strong)).argmax(1) == batch.labels).float().mean())

    assert accuracy_under_attack(robust) > accuracy_under_attack(plain) + 0.05


def test_ueraser_augments_within_the_range_and_from_its_generator_alone() -> None:
    x, augment = batch_of(coloured()).inputs, ueraser.pipeline()
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):  # as on a GPU, where it must make no difference
        coarse = ueraser.augmented(x, augment, torch.Generator().manual_seed(0))
    first, second, other = (ueraser.augmented(x, augment, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second) and torch.equal(first, coarse) and not torch.equal(first, other)
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1


def test_ueraser_learns_from_the_worst_of_five_at_first_and_then_from_one() -> None:
    model = training.train_classifier(few(), QUICK, seed=0)  # in eval mode: a row's loss is its own
    strategy, losses = ueraser.WorstAugmentation(ueraser.Settings()), {}
    for versions, progress in ((5, 0.0), (1, 0.25)):
        batch = batch_of(few(), progress=progress)
        twin = torch.Generator().manual_seed(0)
        inputs = ueraser.augmented(batch.inputs.repeat(versions, 1, 1, 1), strategy.augment, twin)
        with torch.no_grad():
            parts = [
                [
                    F.cross_entropy(model(x[None]), label[None]).item()
                    for x, label in zip(part, batch.labels, strict=True)
                ]
                for part in inputs.chunk(versions)
            ]
            losses[versions] = strategy.loss(model, batch).item()
        assert losses[versions] == pytest.approx(np.max(parts, axis=0).mean(), rel=1e-4)
        assert all(losses[versions] >= np.mean(part) - 1e-6 for part in parts)
    assert losses[5] > losses[1]


@pytest.mark.parametrize(("name", "library"), [("ueraser", "kornia.augmentation"), ("avatar", "diffusers")])
def test_a_missing_library_is_one_line_that_helps(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings = {"checkpoint": str(tmp_path)} if name == "avatar" else {}
    with pytest.raises(StageError, match=rf"^{name}: needs {library}: pip install 'decant\[peers\]'.*$") as error:
        methods.train_with(name, few(), QUICK, seed=0, **settings)
    assert "\n" not in str(error.value)


class Watched(staged.Staged):
    """Keeps what every layer was before each step."""

    def __init__(self, settings: staged.Settings):
        super().__init__(settings)
        self.seen: list[tuple[float, list[dict[str, torch.Tensor]]]] = []

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        states = [{key: value.clone() for key, value in layer.state_dict().items()} for layer in self.layers]
        self.seen.append((batch.progress, states))
        return super().loss(model, batch)


def test_staged_training_stops_the_shallow_layers_for_good() -> None:
    settings = staged.Settings(stages=5, first=0.4, ramp=0.2)
    strategy = Watched(settings)
    training.train_classifier(digits()[0].select(np.arange(320)), TrainSettings(epochs=4), seed=0, strategy=strategy)
    assert len(strategy.seen) == 20 and len(strategy.layers) == 7  # three convolutions, three normalisations, the last
    for (progress, before), (_, after) in pairwise(strategy.seen):
        rates = strategy.rates(progress)
        assert list(rates) == sorted(rates) and rates[-1] == 1
        for rate, old, new in zip(rates, before, after, strict=True):
            still = all(torch.equal(old[key], new[key]) for key in old)
            assert still == (rate == 0), (progress, rate)
    stopped = [sum(rate == 0 for rate in strategy.rates(t)) for t in (0, 0.39, 0.4, 0.6, 0.8, 0.99)]
    assert stopped == sorted(stopped) and stopped[:3] == [0, 0, 1] and stopped[-1] >= 3


def test_staged_groups_hold_every_parameter_once() -> None:
    for name in ("small_cnn", "resnet18", "mobilenet_v2"):
        model = networks.build(networks.Architecture(name, (16, 16, 3), ("a", "b")), seed=0)
        held = [id(p) for group in staged.Staged(staged.Settings()).groups(model) for p in group]
        assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_avatar_adds_the_noise_of_its_schedule(tmp_path: Path) -> None:
    _, scheduler = avatar.load_diffusion(tiny_diffusion(tmp_path, (16, 16, 1)), (16, 16, 1))
    kept = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:100])  # DDPM's linear schedule, after 100 steps
    x = torch.full((400, 1, 16, 16), 0.5)
    noised = avatar.noised(x, 100, scheduler, torch.Generator().manual_seed(0))
    assert noised.mean().item() == pytest.approx(0.5 * kept**0.5, abs=0.01)
    assert noised.var().item() == pytest.approx(1 - kept, rel=0.02)


def test_avatar_without_noise_returns_the_images(tmp_path: Path) -> None:
    checkpoint = tiny_diffusion(tmp_path, coloured().shape)
    settings = {"checkpoint": checkpoint, "noise_steps": 0}
    assert np.array_equal(methods.clean("avatar", coloured(), seed=0, **settings).pixels, coloured().pixels)


def test_avatar_reverses_the_noise_that_a_perfect_model_predicts(tmp_path: Path) -> None:
    _, scheduler = avatar.load_diffusion(tiny_diffusion(tmp_path, (16, 16, 1)), (16, 16, 1))
    x = batch_of(few()).inputs * 2 - 1
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def oracle(noised: torch.Tensor, t: int) -> SimpleNamespace:
        return SimpleNamespace(sample=(noised - alphas[t] ** 0.5 * x) / (1 - alphas[t]) ** 0.5)

    generator = torch.Generator().manual_seed(0)
    noised = avatar.noised(x, 60, scheduler, generator)
    found = avatar.denoised(noised, avatar.Settings(noise_steps=60), oracle, scheduler, generator)
    assert (noised - x).abs().mean() > 0.1 > 0.01 > (found - x).abs().max()


def test_avatar_refuses_a_model_that_does_not_fit(tmp_path: Path) -> None:
    checkpoint = tiny_diffusion(tmp_path, (16, 16, 3))
    with pytest.raises(StageError, match="is for images of 16 x 16 x 3, these are 16 x 16 x 1"):
        methods.clean("avatar", few(), seed=0, checkpoint=checkpoint)
    with pytest.raises(SettingsError, match=r"avatar.checkpoint: a folder .* expected, '' found"):
        methods.clean("avatar", few(), seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"^avatar.checkpoint: .*: no UNet2DModel .*$"):
        methods.clean("avatar", few(), seed=0, checkpoint=str(tmp_path / "empty"))
