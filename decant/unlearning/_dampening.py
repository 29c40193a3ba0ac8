"""Importance of every weight to a set of rows, and the shrinking of weights: shared by `potion` and `ssd`."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.training import as_float, labels_to_device, to_device
from decant.runtime import device

BATCH = 64


def importances(model: nn.Module, images: Images, power: int) -> list[Tensor]:
    """Each parameter's mean over batches of |∂L / ∂w|^power, L the cross-entropy; in the parameter's shape.

    In eval mode, so that the rows of a batch don't depend on each other.
    """
    model = model.to(device()).eval()
    x, y = to_device(images.pixels), labels_to_device(images.labels)
    parameters = list(model.parameters())
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    batches = torch.arange(len(images), device=x.device).split(BATCH)
    for rows in batches:
        loss = F.cross_entropy(model(as_float(x[rows])).float(), y[rows])
        for total, gradient in zip(totals, torch.autograd.grad(loss, parameters), strict=True):
            total.add_(gradient.abs() ** power)
    return [total / len(batches) for total in totals]


@torch.no_grad()
def shrunk(model: nn.Module, factors: list[Tensor]) -> nn.Module:
    """A copy of the model with each parameter times its factor."""
    copy = deepcopy(model).to(device()).eval()
    for parameter, factor in zip(copy.parameters(), factors, strict=True):
        parameter.mul_(factor)
    return copy
