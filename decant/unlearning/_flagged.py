"""What the methods share that train with the flagged rows at hand: a batch of them beside each of kept ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.training import Batch, Strategy, as_float, labels_to_device, to_device


class BesideFlagged(Strategy):
    """Every step sees as many flagged rows as kept ones, in one forward pass, so that batch normalisation sees both."""

    def __init__(self, flagged: Images):
        self.x, self.y = to_device(flagged.pixels), labels_to_device(flagged.labels)

    def drawn(self, batch: Batch) -> Tensor:
        """(m, c, h, w) float32: flagged rows, drawn with replacement; as many as there are in the batch."""
        rows = torch.randint(0, len(self.x), (len(batch.inputs),), generator=batch.generator)
        return as_float(self.x[rows.to(self.x.device)])


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of logits (n, classes), averaged over the rows, times temperature^2."""
    wanted, found = F.log_softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)


@torch.no_grad()
def frozen(model: nn.Module, inputs: Tensor) -> Tensor:
    """A teacher's logits."""
    return model(inputs).float()
