"""A small network with all that EK-FAC must handle, its rows, and autograd's gradients of them. float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant import ekfac


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


def rows(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 9, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator)


def weights_with_bias(layer: nn.Module, grads: dict[int, Tensor]) -> Tensor:
    """Autograd's gradient of a layer as the matrix [W | b] (O, D)."""
    matrix = grads[id(layer.weight)].flatten(1)
    return matrix if layer.bias is None else torch.cat([matrix, grads[id(layer.bias)][:, None]], 1)


def autograd_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    """One dictionary per row: layer name to the gradient (O, D) of its cross-entropy."""
    result = []
    for image, label in zip(x, y, strict=True):
        parameters = list(model.parameters())
        grads = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), parameters)
        by_id = {id(parameter): grad for parameter, grad in zip(parameters, grads, strict=True)}
        result.append({name: weights_with_bias(m, by_id) for name, m in ekfac.layers_of(model).items()})
    return result
