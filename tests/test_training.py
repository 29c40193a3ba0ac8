"""The classifier's training loop and the models on disk."""

import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from samples import digits

from decant.errors import TableError
from decant.models import networks, training
from decant.models.settings import TrainSettings

SETTINGS = TrainSettings(epochs=4)


def test_digits_are_learnt() -> None:
    train, test = digits()
    assert training.accuracy(training.train_classifier(train, SETTINGS, seed=0), test) > 0.94  # type: ignore[operator]


def test_same_seed_same_weights_and_another_seed_others() -> None:
    train, _ = digits()
    few = train.select(np.arange(300))
    first, second, other = (training.train_classifier(few, SETTINGS, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_global_random_state_alone() -> None:
    train, _ = digits()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    training.train_classifier(train.select(np.arange(64)), SETTINGS, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_labels_of_chance_are_not_learnt() -> None:
    """The control: with shuffled labels the same loop must fail on the test rows."""
    train, test = digits()
    shuffled = train.with_labels(np.random.default_rng(0).permutation(train.labels))
    assert training.accuracy(training.train_classifier(shuffled, SETTINGS, seed=0), test) < 0.3  # type: ignore[operator]


def test_steps_are_counted_as_taken() -> None:
    train, _ = digits()
    for rows in (65, 64, 130):  # a last batch of one row is dropped
        few, taken = train.select(np.arange(rows)), []
        training.train_classifier(few, SETTINGS, seed=0, on_step=lambda taken=taken: taken.append(1))
        assert len(taken) == training.steps_of(len(few), SETTINGS)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 4), (5, 7), (8, 9)])
def test_pooling_to_2x2_is_adaptive_pooling(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width)
    assert torch.equal(networks.MaxPoolTo2x2()(x), torch.nn.AdaptiveMaxPool2d(2)(x))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_model_comes_back_from_disk_as_it_was(name: str, tmp_path: Path) -> None:
    architecture = networks.Architecture(name=name, shape=(16, 16, 3), class_names=("a", "ü", "c"))
    model = networks.build(architecture, seed=0).eval()
    networks.save(tmp_path / "m.safetensors", model, architecture)
    loaded, found = networks.load(tmp_path / "m.safetensors")
    x = torch.rand(2, 3, 16, 16)
    assert found == architecture
    networks.save(tmp_path / "again.safetensors", model, architecture)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert torch.equal(model(x), loaded(x))


def test_foreign_model_file_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(TableError, match="header key 'decant' expected"):
        networks.load(tmp_path / "foreign.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:20])
    with pytest.raises(TableError, match="not a safetensors file"):
        networks.load(tmp_path / "torn.safetensors")
    with pytest.raises(TableError, match="no such file; run the stage"):
        networks.load(tmp_path / "none.safetensors")


def test_each_pass_over_the_rows_is_shuffled_anew_and_whole() -> None:
    passes = list(training.epochs_of_batches(7, 3, 2, torch.Generator().manual_seed(0)))  # the seventh row is left out
    assert [len(batch) for batch in passes] == [3, 3, 3, 3]
    first, second = torch.cat(passes[:2]).tolist(), torch.cat(passes[2:]).tolist()
    assert len(set(first)) == len(set(second)) == 6 and first != second


def test_weights_order_and_augmentation_are_drawn_from_streams_of_their_own() -> None:
    """Augmentation changes neither the order of the rows nor the first weights."""
    orders: list[list[int]] = []
    first_weights: list[torch.Tensor] = []
    few = digits()[0].select(np.arange(64))
    for kind in ("none", "shift_flip"):
        seen: list[int] = []

        class Watched(training.TrainingStrategy):
            def loss(self, model: torch.nn.Module, batch: training.Batch, seen: list[int] = seen) -> torch.Tensor:
                if not seen:
                    first_weights.append(torch.cat([p.detach().clone().flatten() for p in model.parameters()]))
                seen.extend(batch.labels.tolist())
                return super().loss(model, batch)

        settings = TrainSettings(epochs=2, batch_size=16, augment=kind)  # type: ignore[arg-type]
        training.train_classifier(few, settings, seed=0, strategy=Watched())
        orders.append(seen)
    assert orders[0] == orders[1] and torch.equal(*first_weights)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet50", 25_557_032 - 990 * 2049 - (49 - 9) * 3 * 64),  # as published for ImageNet, less head and stem
        ("densenet121", 7_978_856 - 990 * 1025 - (49 - 9) * 3 * 64),
        ("mobilenet_v2", 3_504_872 - 990 * 1281),
    ],
)
def test_networks_have_the_size_of_their_papers(name: str, parameters: int) -> None:
    architecture = networks.Architecture(name=name, shape=(32, 32, 3), class_names=tuple("0123456789"))
    model = networks.build(architecture, seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "mobilenet_v2"])
def test_small_images_are_reduced_eightfold(name: str) -> None:
    """The CIFAR stem: 32 pixels leave 4 x 4 positions before the last pooling; ImageNet's would leave one."""
    architecture = networks.Architecture(name=name, shape=(32, 32, 3), class_names=tuple("0123456789"))
    model, sides = networks.build(architecture, seed=0).eval(), [32]
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert sides[1] == 32 and sides[-1] == 4


def test_parameters_name_every_network() -> None:
    assert typing.get_args(typing.get_type_hints(TrainSettings)["network"]) == tuple(networks.NETWORKS)


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v2"])
def test_large_networks_train_from_their_seed_alone(name: str) -> None:
    few = digits()[0].select(np.arange(4))
    settings = TrainSettings(network=name, epochs=1)  # type: ignore[arg-type]
    torch.manual_seed(7)
    first = training.train_classifier(few, settings, seed=1).state_dict()
    torch.manual_seed(8)
    second = training.train_classifier(few, settings, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
