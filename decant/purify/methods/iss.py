"""ISS: image shortcut squeezing, the best of BDR, Gray and JPEG (Liu et al., ICML 2023).

No single squeezing undoes every attack, so the paper reports, per attack, the one whose network does best on clean test
rows. Someone who has the poisoned data alone can't choose so. Here the choice needs a `probe`, labelled images known to
be clean and used for nothing else:

    train with each of the three, keep the network with the highest accuracy on the probe (the first at a tie)

Without a probe it is JPEG: the only one of the three above 80 % on every attack of the paper's CIFAR-10 table. For the
paper's own figure, run `bdr`, `gray` and `jpeg` and report the best; that choice has seen the test rows.

Cost: the three together with a probe, else JPEG's.
Expected: the accuracy of the one chosen.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from torch import nn

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, train_classifier
from decant.purify.methods import bdr, gray, jpeg
from decant.settings import Block

MEMBERS = (bdr, gray, jpeg)


@dataclass(frozen=True)
class Settings(Block):
    pass


def train(
    images: Images, train_settings: TrainSettings, settings: Settings, *, seed: int, probe: Images | None
) -> nn.Module:
    """The best of the three networks on the probe; JPEG's without one."""
    if probe is None or not len(probe):
        return _trained(jpeg, images, train_settings, seed)
    models = [_trained(member, images, train_settings, seed) for member in MEMBERS]
    return models[int(np.argmax([accuracy(model, probe) or 0.0 for model in models]))]


def _trained(member: ModuleType, images: Images, train_settings: TrainSettings, seed: int) -> nn.Module:
    return train_classifier(member.clean(images, member.Settings(), seed=seed), train_settings, seed=seed)
