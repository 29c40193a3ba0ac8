"""What attacks that optimise a perturbation share: a surrogate network, and projected gradient descent (PGD).

Perturbations delta are in [0, 1] units, (n, c, h, w) float32, within the l-inf ball of a radius. Rows stay on the
device, batches are index gathers, nothing is read back inside a loop. Imported only from inside an attack's functions,
because it loads torch.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.networks import Architecture, build
from decant.models.training import as_float, labels_to_device, step, to_device
from decant.runtime import device
from decant.streams import child, torch_stream

BATCH = 128
PGD_BATCH = 512
Loss = Callable[[Tensor, Tensor], Tensor]
"""(rows (m,), their perturbed images (m, c, h, w)) to the summed loss that the perturbation is to make small."""


class Surrogate:
    """The attacker's own network, trained by plain SGD, and the rows that it is trained on.

    Its weights and batch order follow from `seed`. In eval mode between calls of `learn`.
    """

    def __init__(self, images: Images, network: str, *, seed: int, lr: float = 0.05):
        self.x, self.y, self.classes = to_device(images.pixels), labels_to_device(images.labels), images.classes
        architecture = Architecture(name=network, shape=images.shape, class_names=images.info.class_names)
        model = build(architecture, seed=child(seed, "surrogate")).to(device())
        self.model: nn.Module = model.to(memory_format=torch.channels_last).eval()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.generator = torch_stream(seed, "surrogate", "steps")
        self._waiting: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.x)

    def zeros(self) -> Float[Tensor, "n c h w"]:
        """A perturbation of zero for every row."""
        return torch.zeros(self.x.shape, device=self.x.device)

    def next_rows(self) -> Int[Tensor, " m"]:
        """The next batch of row numbers of a shuffled pass; batches of one row are left out for batch normalisation."""
        while not self._waiting:
            batches = torch.randperm(len(self), generator=self.generator).split(BATCH)
            self._waiting = [batch.to(self.x.device) for batch in batches if len(batch) > 1 or len(self) == 1]
        return self._waiting.pop()

    def logits(self, inputs: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        """The network's logits for images in [0, 1]."""
        return apply(self.model, inputs)

    def learn_from(self, inputs: Float[Tensor, "m c h w"], labels: Int[Tensor, " m"]) -> None:
        """One SGD step on a batch."""
        self.model.train().requires_grad_(True)
        loss = F.cross_entropy(self.logits(inputs), labels)
        step(self.optimizer, loss, clip=5.0)
        self.model.eval().requires_grad_(False)

    def learn(self, steps: int, delta: Float[Tensor, "n c h w"] | None = None) -> None:
        """SGD steps on the rows, with the perturbations `delta` on them."""
        for _ in range(steps):
            rows = self.next_rows()
            inputs = as_float(self.x[rows])
            self.learn_from(inputs if delta is None else (inputs + delta[rows]).clamp_(0, 1), self.y[rows])

    def learn_epochs(self, epochs: int, delta: Float[Tensor, "n c h w"] | None = None) -> None:
        """Passes over the rows, with `delta` on them, at a learning rate that falls to zero along a cosine."""
        steps = epochs * -(-len(self) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        for _ in range(steps):
            self.learn(1, delta)
            schedule.step()

    @torch.no_grad()
    def error(self, delta: Float[Tensor, "n c h w"]) -> float:
        """Error rate of the network on the rows with `delta` on them."""
        wrong = torch.zeros((), device=self.x.device)
        for rows in torch.arange(len(self), device=self.x.device).split(PGD_BATCH):
            predicted = self.logits((as_float(self.x[rows]) + delta[rows]).clamp_(0, 1)).argmax(1)
            wrong += (predicted != self.y[rows]).sum()
        return float(wrong) / len(self)


def apply(model: nn.Module, inputs: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
    """The network's float32 output; bfloat16 inside on a GPU, as in `decant.models.training`."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model(inputs).float()


def pgd(
    x: UInt8[Tensor, "n c h w"], delta: Float[Tensor, "n c h w"], loss: Loss, *, radius: float, step: float, steps: int
) -> Float[Tensor, "n c h w"]:
    """The perturbation of every row after `steps` signed gradient steps that descend on the loss:

    delta <- clip(delta - step * sign(d loss / d delta), -radius, radius), and x + delta stays in [0, 1].
    """
    out = delta.clone()
    for rows in torch.arange(len(x), device=x.device).split(PGD_BATCH):
        clean, found = as_float(x[rows]), out[rows]
        for _ in range(steps):
            found = pgd_step(clean, found, partial(loss, rows), radius=radius, step=step)
        out[rows] = found
    return out


def pgd_step(
    clean: Float[Tensor, "m c h w"],
    delta: Float[Tensor, "m c h w"],
    loss: Callable[[Tensor], Tensor],
    *,
    radius: float,
    step: float,
) -> Float[Tensor, "m c h w"]:
    """One step of `pgd` on one batch of images in [0, 1]."""
    delta = delta.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(clean + delta), delta)
    with torch.no_grad():
        return projected(clean, delta - step * gradient.sign(), radius)


def projected(
    clean: Float[Tensor, "m c h w"], delta: Float[Tensor, "m c h w"], radius: float
) -> Float[Tensor, "m c h w"]:
    """`delta` projected onto the l-inf ball of `radius`, and so that clean + delta is in [0, 1]."""
    return (clean + delta.clamp(-radius, radius)).clamp_(0, 1).sub_(clean)


def grey_levels(delta: Float[Tensor, "n c h w"], strength: int) -> Float[np.ndarray, "n h w c"]:
    """The perturbations in whole grey levels, none beyond `strength`."""
    return (delta * 255).round_().clamp_(-strength, strength).permute(0, 2, 3, 1).cpu().numpy()
