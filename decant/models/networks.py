"""Image classifiers, and models on disk.

* ``small_cnn``: three convolutions 16-32-32 with batch normalisation, max-pooled to 2 x 2, one linear layer. 15 k
  parameters; what the demo and the CPU-sized checks train in seconds. Max pooling at the end keeps a small patch
  visible to the last layer, as a large network would.
* ``resnet18``: He et al. 2016 with the CIFAR stem (3 x 3, stride 1, no pooling), as all three papers use it. 11.2 M.
* ``resnet50`` (23.5 M), ``densenet121`` (7.0 M), ``mobilenet_v2`` (2.2 M): the other classifiers of D-VAE's tables.
  torchvision's definitions with the CIFAR stem put in. MobileNet-v2 keeps full resolution in its stem and in its first
  stage of stride 2, and has no dropout, whose draws would come from the global random state.

Every network takes (n, c, h, w) float32 in [0, 1], centres it itself, and returns logits (n, classes).
"""

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import TableError
from decant.files import replacing


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network again; stands in the header of its safetensors file."""

    name: str
    shape: tuple[int, int, int]  # height, width, channel
    class_names: tuple[str, ...]


class Centred(nn.Module):
    """x - 0.3 before the network: about the mean of a digit's and of a photograph's pixels, kept the same for both."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.3


class MaxPoolTo2x2(nn.Module):
    """What nn.AdaptiveMaxPool2d(2) does for sides of 2 and more; that one's gradient is not deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return F.max_pool2d(x, (-(-height // 2), -(-width // 2)), (height // 2, width // 2))


def small_cnn(channels: int, classes: int) -> nn.Module:
    def block(inputs: int, outputs: int, pool: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), pool]

    return nn.Sequential(
        Centred(),
        *block(channels, 16, nn.MaxPool2d(2)),
        *block(16, 32, nn.MaxPool2d(2)),
        *block(32, 32, MaxPoolTo2x2()),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, classes),
    )


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn plus the input (through a 1 x 1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(channels: int, classes: int) -> nn.Module:
    widths = [64, 64, 128, 256, 512]
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        blocks += [BasicBlock(inputs, outputs, 1 if inputs == outputs else 2), BasicBlock(outputs, outputs)]
    return nn.Sequential(
        Centred(),
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def resnet50(channels: int, classes: int) -> nn.Module:
    from torchvision import models  # costs seconds, as in the two below

    net = models.resnet50(num_classes=classes)
    net.conv1 = _stem(channels, 64)
    net.maxpool = nn.Identity()
    return nn.Sequential(Centred(), net)


def densenet121(channels: int, classes: int) -> nn.Module:
    from torchvision import models

    net = models.densenet121(num_classes=classes)
    net.features.conv0 = _stem(channels, 64)
    net.features.pool0 = nn.Identity()
    return nn.Sequential(Centred(), net)


def mobilenet_v2(channels: int, classes: int) -> nn.Module:
    from torchvision import models

    net = models.mobilenet_v2(num_classes=classes, dropout=0.0)
    net.features[0][0] = _stem(channels, 32)
    net.features[2].conv[1][0].stride = (1, 1)  # the depthwise convolution of the first block of the stage
    return nn.Sequential(Centred(), net)


def _stem(channels: int, width: int) -> nn.Conv2d:
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": small_cnn,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "mobilenet_v2": mobilenet_v2,
}


def build(architecture: Architecture, *, seed: int) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[architecture.name](architecture.shape[2], len(architecture.class_names))


def save(path: Path, model: nn.Module, architecture: Architecture) -> None:
    header = {"decant": json.dumps(asdict(architecture), sort_keys=True)}  # one key: safetensors shuffles several
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(weights, metadata=header))


def load(path: Path) -> tuple[nn.Module, Architecture]:
    """The model in eval mode on the CPU, and what it is. Raises TableError when the file is no Decant model."""
    header = _header(path)
    if "decant" not in header:
        raise TableError(f"{path}: header key 'decant' expected, none found: not a Decant model")
    fields = json.loads(header["decant"])
    architecture = Architecture(fields["name"], tuple(fields["shape"]), tuple(fields["class_names"]))
    model = build(architecture, seed=0)
    model.load_state_dict(load_file(path))
    return model.eval(), architecture


def _header(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file: 8 bytes of length, then JSON."""
    if not path.is_file():
        raise TableError(f"{path}: no such file; run the stage that writes it first")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})
