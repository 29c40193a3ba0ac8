"""What the attacks that optimise their noise share: a surrogate network, and signed steps within a ball of grey levels.

Rows stay on the device, batches are index gathers, nothing is read back inside a loop. Imported only from inside an
attack's functions, because it loads torch.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.networks import Architecture, build
from decant.models.training import as_float, labels_to_device, step, to_device
from decant.runtime import device

BATCH = 128
PGD_BATCH = 512
Loss = Callable[[Tensor, Tensor], Tensor]
"""(rows (m,), their noisy images (m, c, h, w)) to the summed loss that the noise is to make small."""


class Surrogate:
    """A network of the attacker's own, trained by plain SGD, and the rows that it is trained on.

    Its batch order and weights follow from `seed`. `eval` mode between calls of `learn`.
    """

    def __init__(self, images: Images, network: str, *, seed: int, lr: float = 0.05):
        self.x, self.y, self.classes = to_device(images.pixels), labels_to_device(images.labels), images.classes
        architecture = Architecture(name=network, shape=images.shape, class_names=images.info.class_names)
        model = build(architecture, seed=seed).to(device())
        self.model: nn.Module = model.to(memory_format=torch.channels_last).eval()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.generator = torch.Generator().manual_seed(seed)
        self._waiting: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.x)

    def blank(self) -> Tensor:
        """No noise yet: (n, c, h, w) float32."""
        return torch.zeros(self.x.shape, device=self.x.device)

    def next_rows(self) -> Tensor:
        """The next index batch of a shuffled pass; a batch of one row would break batch normalisation: skipped."""
        while not self._waiting:
            batches = torch.randperm(len(self), generator=self.generator).split(BATCH)
            self._waiting = [batch.to(self.x.device) for batch in batches if len(batch) > 1 or len(self) == 1]
        return self._waiting.pop()

    def logits(self, inputs: Tensor) -> Tensor:
        return apply(self.model, inputs)

    def learn_from(self, inputs: Tensor, labels: Tensor) -> None:
        """One SGD step."""
        self.model.train().requires_grad_(True)
        loss = F.cross_entropy(self.logits(inputs), labels)
        step(self.optimizer, loss, clip=5.0)
        self.model.eval().requires_grad_(False)

    def learn(self, steps: int, delta: Tensor | None = None) -> None:
        """SGD steps on the rows, with `delta` (n, c, h, w) on them."""
        for _ in range(steps):
            rows = self.next_rows()
            inputs = as_float(self.x[rows])
            self.learn_from(inputs if delta is None else (inputs + delta[rows]).clamp_(0, 1), self.y[rows])

    def learn_epochs(self, epochs: int, delta: Tensor | None = None) -> None:
        """Passes over the rows at a learning rate that falls to zero along a cosine."""
        steps = epochs * -(-len(self) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        for _ in range(steps):
            self.learn(1, delta)
            schedule.step()

    @torch.no_grad()
    def error(self, delta: Tensor) -> float:
        """Share of rows, with `delta` on them, that the network gets wrong."""
        wrong = torch.zeros((), device=self.x.device)
        for rows in torch.arange(len(self), device=self.x.device).split(PGD_BATCH):
            predicted = self.logits((as_float(self.x[rows]) + delta[rows]).clamp_(0, 1)).argmax(1)
            wrong += (predicted != self.y[rows]).sum()
        return float(wrong) / len(self)


def apply(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's float32 output; bfloat16 inside on a GPU, as in `decant.models.training`."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model(inputs).float()


def descend(x: Tensor, delta: Tensor, loss: Loss, *, radius: float, step: float, steps: int) -> Tensor:
    """The noise after `steps` signed gradient steps, on every row; both in [0, 1] units.

    x (n, c, h, w) uint8 and delta float32:  delta <- clip(delta - step * sign(d loss / d delta), -radius, radius),
    and x + delta stays in [0, 1].
    """
    out = delta.clone()
    for rows in torch.arange(len(x), device=x.device).split(PGD_BATCH):
        clean, noise = as_float(x[rows]), out[rows]
        for _ in range(steps):
            noise = signed_step(clean, noise, partial(loss, rows), radius=radius, step=step)
        out[rows] = noise
    return out


def signed_step(
    clean: Tensor, noise: Tensor, loss: Callable[[Tensor], Tensor], *, radius: float, step: float
) -> Tensor:
    """One step of `descend` on one batch."""
    noise = noise.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(clean + noise), noise)
    with torch.no_grad():
        return within(clean, noise - step * gradient.sign(), radius)


def within(clean: Tensor, noise: Tensor, radius: float) -> Tensor:
    """`noise` projected onto the ball of `radius` and onto images in [0, 1]."""
    return (clean + noise.clamp(-radius, radius)).clamp_(0, 1).sub_(clean)


def grey_levels(delta: Tensor, strength: int) -> np.ndarray:
    """(n, h, w, c) of whole grey levels, none beyond `strength`, of noise (n, c, h, w) in [0, 1] units."""
    return (delta * 255).round_().clamp_(-strength, strength).permute(0, 2, 3, 1).cpu().numpy()
