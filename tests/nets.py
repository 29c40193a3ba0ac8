"""A small network with all that EK-FAC must handle, its rows, and autograd's gradients of them. float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.influence import ekfac


def small_net(**conv: object) -> nn.Module:
    """Two convolutions and a linear layer, with biases, an in-place ReLU and a normalisation between."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, **conv),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (1, 3), bias=False),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model.eval()


def small_mixed_net() -> nn.Module:
    """Grouped and depthwise convolutions, and normalisations of several kinds, with scales and shifts of their own."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(2),
        nn.LayerNorm(4),
        nn.InstanceNorm1d(4, affine=True),
        nn.Flatten(),
        nn.RMSNorm(16),
        nn.Linear(16, 3),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
        model[4].running_mean.normal_(generator=generator)
    return model.eval()


def rows(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 9, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator)


def weights_with_bias(layer: nn.Module, grads: dict[int, Tensor]) -> Tensor:
    """Autograd's gradient of a layer as the matrix [W | b] (O, D), or one per block (C, O, D)."""
    matrix = grads[id(layer.weight)].flatten(1 if isinstance(layer, nn.Linear | nn.Conv2d) else 0)
    matrix = matrix if matrix.ndim == 2 else matrix[:, None]
    bias = getattr(layer, "bias", None)
    matrix = matrix if bias is None else torch.cat([matrix, grads[id(bias)].flatten()[:, None]], 1)
    blocks = len(matrix) if not isinstance(layer, nn.Linear | nn.Conv2d) else getattr(layer, "groups", 1)
    return matrix if blocks == 1 else matrix.unflatten(0, (blocks, -1))


def autograd_gradients(
    model: nn.Module, x: Tensor, y: Tensor, *, normalisation: bool = False
) -> list[dict[str, Tensor]]:
    """One dictionary per row: layer name to the gradient (O, D) of its cross-entropy."""
    result = []
    layers = ekfac.layers_of(model, normalisation=normalisation)
    for image, label in zip(x, y, strict=True):
        parameters = list(model.parameters())
        grads = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), parameters)
        by_id = {id(parameter): grad for parameter, grad in zip(parameters, grads, strict=True)}
        result.append({name: weights_with_bias(layer, by_id) for name, layer in layers.items()})
    return result
