"""Wrong labels: a share of the rows gets another class, drawn uniformly.

The accident that every crowd-labelled set has, and the weakest poisoning that LabelTrust is measured on.
"""

from dataclasses import dataclass

import numpy as np

from decant.attacks import Poisoned, draw_rows
from decant.images import Images
from decant.settings import Fraction

KIND = "label"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: Fraction = 0.08
    """Share of all rows that are mislabelled."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
    rows = draw_rows(~spared, round(settings.rate * len(images)), rng, key="label_noise.rate")
    shift = rng.integers(1, images.classes, rows.sum())  # never 0: the new label is always another one
    labels = images.labels.copy()
    labels[rows] = (labels[rows] + shift) % images.classes
    return Poisoned(images.with_labels(labels), rows)
