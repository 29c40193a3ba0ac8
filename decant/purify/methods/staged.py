"""ST: progressive staged training (Dang et al., "Flew Over Learning Trap", 2023, arXiv 2306.02064).

Early in training a network learns image and perturbation; then its shallow layers overfit to the perturbation, and the
deeper ones follow. So the learning rates of the layers are lowered stage by stage, the shallow ones first, down to 0.

    rate of a layer at depth d = clip((stop(d) - t) / ramp, 0, 1),  stop(d) = first + (1 + ramp - first) d
    d: 0 for the first layer, 1 for the last;  t: share of the training done, rounded down to whole stages

**Reconstructed** from the paper's idea; we could not consult its text or code. The paper ends a stage by a measure
of how the activations cluster (ACM); here the stages are equally long. A layer whose rate is 0 also keeps its batch
normalisation's running statistics; the last layer always learns at full rate.

Cost: that of plain training.
Expected: no gain on digits under LSP: 77.0 % clean accuracy where `none` has 76.5 %, and 98.7 % without it where `none`
has 98.6 % (settings: `none`; 3 seeds, 2 CPU cores). Any linear layer, shallow or deep, separates LSP's classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import Batch, TrainingStrategy, train_classifier
from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    stages: Positive = 10
    """Steps in which the rates are lowered."""
    first: Fraction = 0.3
    """Share of the training after which the first layer's rate is 0."""
    ramp: Annotated[float, Field(ge=0.01, le=1)] = 0.3
    """Share of the training over which a layer's rate falls from 1 to 0."""


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    return train_classifier(images, train_settings, seed=seed, strategy=Staged(settings))


class Staged(TrainingStrategy):
    """Training in which the learning rates of the layers fall to 0 one after the other."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.layers: list[nn.Module] = []

    def groups(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """One group per layer that has parameters of its own, in the order in which networks list them: by depth."""
        self.layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
        return [list(layer.parameters(recurse=False)) for layer in self.layers]

    def rates(self, progress: float) -> Sequence[float]:
        """The rate of each layer by the formula above."""
        first, ramp = self.settings.first, self.settings.ramp
        done = int(progress * self.settings.stages) / self.settings.stages
        last = max(1, len(self.layers) - 1)
        stops = [first + (1 + ramp - first) * index / last for index in range(len(self.layers))]
        return [min(1.0, max(0.0, (stop - done) / ramp)) for stop in stops]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        for layer, rate in zip(self.layers, self.rates(batch.progress), strict=True):
            layer.train(rate > 0)
        return super().loss(model, batch)
