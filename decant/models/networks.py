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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import TableError
from decant.files import replacing
from decant.streams import child


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; stands in the header of its safetensors file."""

    name: str
    """A key of NETWORKS."""
    shape: tuple[int, int, int]
    """Height, width, channels of an image."""
    class_names: tuple[str, ...]


class Centred(nn.Module):
    """Subtracts 0.3 from every pixel, which is about the mean of digits and of photographs."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.3


class MaxPoolTo2x2(nn.Module):
    """Max pooling to 2 x 2 positions, for sides of 2 and more.

    It equals nn.AdaptiveMaxPool2d(2), whose gradient is not deterministic on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return F.max_pool2d(x, (-(-height // 2), -(-width // 2)), (height // 2, width // 2))


def small_cnn(channels: int, classes: int) -> nn.Module:
    """Three convolutions and one linear layer."""

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

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 with the CIFAR stem."""
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
    """torchvision's ResNet-50 with the CIFAR stem."""
    from torchvision import models  # here, as in the two below: the import takes seconds

    net = models.resnet50(num_classes=classes)
    net.conv1 = _stem(channels, 64)
    net.maxpool = nn.Identity()
    return nn.Sequential(Centred(), net)


def densenet121(channels: int, classes: int) -> nn.Module:
    """torchvision's DenseNet-121 with the CIFAR stem."""
    from torchvision import models

    net = models.densenet121(num_classes=classes)
    net.features.conv0 = _stem(channels, 64)
    net.features.pool0 = nn.Identity()
    return nn.Sequential(Centred(), net)


def mobilenet_v2(channels: int, classes: int) -> nn.Module:
    """torchvision's MobileNet-v2 with the CIFAR stem and one stride less, without dropout."""
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
    """Build a network with random weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(seed, "weights"))
        return NETWORKS[architecture.name](architecture.shape[2], len(architecture.class_names))


def save(path: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write weights and architecture as safetensors; the same weights give the same bytes."""
    header = {"decant": json.dumps(asdict(architecture), sort_keys=True)}  # one key: safetensors shuffles several
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(weights, metadata=header))


def load(path: Path) -> tuple[nn.Module, Architecture]:
    """Read a model: in eval mode, on the CPU.

    Raises: TableError where there is no file, or one that is no model of Decant.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; run the stage that writes it first")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TableError(
            f"{path}: not a safetensors file ({str(error).splitlines()[0]}); a model's file expected"
        ) from error
    if "decant" not in header:
        raise TableError(f"{path}: header key 'decant' expected, none found: not a Decant model")
    fields = json.loads(header["decant"])
    architecture = Architecture(fields["name"], tuple(fields["shape"]), tuple(fields["class_names"]))
    model = build(architecture, seed=0)
    model.load_state_dict(weights)
    return model.eval(), architecture
