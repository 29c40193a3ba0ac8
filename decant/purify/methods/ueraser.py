"""UEraser: adversarial augmentation (Qin et al., "Learning the Unlearnable", 2023, arXiv 2303.15127).

Unlearnable perturbations are built to survive mild augmentation, so UEraser augments beyond their bound, and the
network learns from the version of each image with the largest loss. One random version suffices once it ignores the
perturbation.

    loss = mean_i max_k CE(f(T_k(x_i)), y_i),  k = 1..5,  for the first quarter of training;  then k = 1
    T = plasma brightness (p 0.5), plasma contrast (p 0.5), channel shuffle (p 0.5), TrivialAugment

As in the official code, with kornia's augmentations, all versions in one forward pass. `max_share` 0 is the paper's
UEraser-Lite, 1 its UEraser-Max. Changed: the schedule is Decant's own (`train` settings), not 200 epochs at 0.01; a
quarter is D-VAE's 50 of 200. Against AR and TAP the authors add JPEG: clean the images with `jpeg` first.

Cost: 5 passes per step in the first quarter, and the augmentation: 0.2 s for 64 x 5 images of 32 x 32 (one CPU core).
Expected: 95.7 % clean accuracy on digits under LSP where `none` has 76.5 %, and 98.7 % without it where `none` has
98.6 % (settings: `none`; 3 seeds, 2 CPU cores).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import Batch, TrainingStrategy, train_classifier
from decant.registry import peer
from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    versions: Positive = 5
    """Augmented versions of an image, of which the one with the largest loss counts (K in the paper)."""
    max_share: Fraction = 0.25
    """Share of the training with that many versions; afterwards, one."""


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    return train_classifier(images, train_settings, seed=seed, strategy=WorstAugmentation(settings))


class WorstAugmentation(TrainingStrategy):
    """Training on the augmentation of every row that gives the largest loss."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.augment = pipeline()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        versions = self.settings.versions if batch.progress < self.settings.max_share else 1
        inputs = augmented(batch.inputs.repeat(versions, 1, 1, 1), self.augment, batch.generator)
        losses = F.cross_entropy(model(inputs).float(), batch.labels.repeat(versions), reduction="none")
        return losses.view(versions, -1).amax(0).mean()


def pipeline() -> nn.Module:
    """T, of kornia's augmentations. Raises: StageError where kornia is not installed."""
    kornia = peer("kornia.augmentation", needed_by="ueraser")
    return kornia.AugmentationSequential(
        kornia.RandomPlasmaBrightness(roughness=(0.3, 0.7), intensity=(0.5, 1.0), p=0.5, keepdim=True),
        kornia.RandomPlasmaContrast(roughness=(0.3, 0.7), p=0.5, keepdim=True),
        kornia.RandomChannelShuffle(p=0.5, keepdim=True),
        kornia.auto.TrivialAugment(),
    )


@torch.no_grad()
def augmented(x: Float[Tensor, "n c h w"], augment: nn.Module, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """T(x), in [0, 1] and in full precision.

    kornia draws from the global random state, which is put back.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast(x.device.type, enabled=False):
        torch.manual_seed(seed)
        return augment(x).clamp(0, 1)
