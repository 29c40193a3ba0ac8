"""Label noise: a share of the rows gets the label of another class.

What every crowd-labelled set has by accident, and the weakest poisoning that LabelTrust is measured on. By default
uniform (symmetric) noise over the other classes. People confuse some classes more than others, though (4 and 9, a shirt
and a T-shirt): `pairs` gives each class one wrong label, the "pair flips" of the noisy-label literature. These are
harder: at a rate near one half, a class's wrong rows are as many as its right ones.

Cost: milliseconds. Expected: see docs/methods/labeltrust.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from decant.attacks.base import Poisoned, draw_rows
from decant.data.images import Images
from decant.errors import SettingsError
from decant.settings import Block, Fraction

KIND = "label"


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    rate: Fraction = 0.08
    """Share of all rows that are mislabelled."""
    pairs: Literal["circular"] | Mapping[str, Any] | None = None
    """null: any other class; `circular`: every class becomes the next one, the last the first; or a mapping of class
    numbers, right to wrong, such as {4: 9, 9: 4}: then only rows of the classes on its left are mislabelled."""


def poison(images: Images, settings: Settings, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
    wrong = _wrong_labels(images, settings.pairs)
    pool = ~taken if wrong is None else ~taken & (wrong[images.labels] >= 0)
    rows = draw_rows(pool, round(settings.rate * len(images)), rng, key="label_noise.rate")
    labels = images.labels.copy()
    if wrong is None:
        shift = rng.integers(1, images.classes, rows.sum())  # never 0: the new label is always another one
        labels[rows] = (labels[rows] + shift) % images.classes
    else:
        labels[rows] = wrong[labels[rows]]
    return Poisoned(images.with_labels(labels), rows)


def _wrong_labels(images: Images, pairs: Mapping[str, Any] | str | None) -> Int[np.ndarray, " k"] | None:
    """The wrong label of each class, -1 for a class that keeps its own; None: any other class."""
    if pairs is None:
        return None
    if isinstance(pairs, str):  # circular
        return (np.arange(images.classes) + 1) % images.classes
    wrong, known = np.full(images.classes, -1), range(images.classes)
    for key, other in pairs.items():
        right = int(key) if key.isdecimal() else -1  # settings are read as JSON, whose keys are texts
        if right not in known or other not in known or right == other:
            wanted = f"class numbers from 0 to {images.classes - 1}, right to another one"
            raise SettingsError(f"label_noise.pairs: {wanted} expected, {key}: {other!r} found")
        wrong[right] = other
    return wrong
