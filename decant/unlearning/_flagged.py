"""Training on kept and flagged rows side by side, and the distance to a teacher: shared by `badt` and `scrub`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.training import Batch, TrainingStrategy, as_float, to_device


class BesideFlagged(TrainingStrategy):
    """Training in which every step has as many flagged rows as kept ones.

    Both go through one forward pass, so that batch normalisation sees both.
    """

    def __init__(self, flagged: Images):
        self.flagged = to_device(flagged.pixels)

    def drawn(self, batch: Batch) -> Float[Tensor, "n c h w"]:
        """Flagged rows, drawn with replacement; as many as there are kept ones in the batch."""
        rows = torch.randint(0, len(self.flagged), (len(batch.inputs),), generator=batch.generator)
        return as_float(self.flagged[rows.to(self.flagged.device)])


def divergence(teacher: Float[Tensor, "n classes"], student: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """KL(teacher || student) of logits, averaged over the rows."""
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


@torch.no_grad()
def frozen(model: nn.Module, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
    """A teacher's logits, without gradients."""
    return model(inputs).float()
