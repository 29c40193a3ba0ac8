"""ST: progressive staged training (Dang et al., "Flew Over Learning Trap", 2023, arXiv 2306.02064).

Early in training a network learns the picture and the noise; then its shallow layers overfit to the noise and pull the
rest along. So the learning rates of the layers are lowered stage by stage, the shallow ones first, until they stand.

    rate of a layer at depth d = clip((stop(d) - t) / ramp, 0, 1),  stop(d) = first + (1 + ramp - first) d
    d: 0 for the first layer, 1 for the last;  t: share of the training done, rounded down to whole stages

**Reconstructed** from the paper's idea; we could not consult its text or code. The paper decides by a measure of how
the activations cluster (ACM) when a stage ends; here the stages are equally long. A layer that stands also keeps its
batch normalisation's running statistics; the last layer always learns at full rate.

Cost: that of plain training.
Expected: no gain on digits under LSP: 77.0 % where `none` has 76.5 %; 98.7 % on clean ones where it has 98.6 % (`none`
says for which settings; 3 seeds, 2 CPU cores). LSP is seen by any linear layer, shallow or deep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import Batch, Strategy, train_classifier
from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    stages: Positive = 10
    first: Fraction = 0.3
    """Share of the training after which the first layer stands."""
    ramp: Annotated[float, Field(ge=0.01, le=1)] = 0.3
    """Share of the training in which a layer comes to a stand."""


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    return train_classifier(images, train_settings, seed=seed, strategy=Staged(settings))


class Staged(Strategy):
    def __init__(self, settings: Settings):
        self.settings = settings
        self.layers: list[nn.Module] = []

    def groups(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """One group per layer that has parameters of its own, in the order in which networks list them: by depth."""
        self.layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
        return [list(layer.parameters(recurse=False)) for layer in self.layers]

    def rates(self, progress: float) -> Sequence[float]:
        first, ramp = self.settings.first, self.settings.ramp
        done = int(progress * self.settings.stages) / self.settings.stages
        last = max(1, len(self.layers) - 1)
        stops = [first + (1 + ramp - first) * index / last for index in range(len(self.layers))]
        return [min(1.0, max(0.0, (stop - done) / ramp)) for stop in stops]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        for layer, rate in zip(self.layers, self.rates(batch.progress), strict=True):
            layer.train(rate > 0)
        return super().loss(model, batch)
