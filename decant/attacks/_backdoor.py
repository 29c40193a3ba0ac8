"""What every attack that plants a trigger has in common: which rows it takes, and what becomes of their labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from decant.attacks.base import Poisoned, class_index, draw_rows
from decant.data.images import Images
from decant.settings import Block, Count, Fraction


@dataclass(frozen=True, kw_only=True)
class Aim(Block):
    """Whose pictures are to be taken for what."""

    victim: Count | None = 8
    """Class whose test images are to be misclassified; null: every class but the target."""
    target: Count = 5
    """Class that the attacker wants predicted."""


@dataclass(frozen=True, kw_only=True)
class Trigger(Aim):
    """What every attack that plants a trigger lets its user set."""

    mode: Literal["dirty", "consistent"] = "dirty"
    rate: Fraction = 0.02
    """Share of all rows that carry the trigger."""
    mix: Fraction = 0.5
    """`consistent`: weight of the victim image in the mixture that the trigger is put on."""


def plant(
    images: Images,
    settings: Trigger,
    rng: np.random.Generator,
    spared: np.ndarray,
    *,
    name: str,
    trigger: Callable[[np.ndarray], np.ndarray],
) -> Poisoned:
    """`dirty`: rows of the victims get trigger and target label. `consistent`: rows of the target class are mixed with
    a victim's picture and get the trigger; their label is right.

    name: of the attack, for error messages; trigger: puts it on pixels (m, h, w, c).
    """
    target = class_index(images, settings.target, key=f"{name}.target")
    victims = is_victim(images, settings, name=name)
    pool = (victims if settings.mode == "dirty" else images.labels == target) & ~spared
    rows = draw_rows(pool, round(settings.rate * len(images)), rng, key=f"{name}.rate")
    pixels, labels = images.pixels.copy(), images.labels.copy()
    if settings.mode == "consistent":
        partners = rng.choice(np.flatnonzero(victims), rows.sum())
        mixture = (1 - settings.mix) * pixels[rows] + settings.mix * images.pixels[partners]
        pixels[rows] = np.rint(mixture).astype(np.uint8)
    pixels[rows] = trigger(pixels[rows])
    labels[rows] = target
    return Poisoned(images.with_pixels(pixels).with_labels(labels), rows)


def is_victim(images: Images, settings: Aim, *, name: str) -> np.ndarray:
    """(n,) bool: the rows of the victim class, or of every class but the target."""
    if settings.victim is None:
        return images.labels != settings.target
    return images.labels == class_index(images, settings.victim, key=f"{name}.victim")


def triggered(images: Images, settings: Trigger, *, name: str, trigger: Callable[[np.ndarray], np.ndarray]) -> Images:
    """The victims' rows with the trigger, labelled as the attacker wants them predicted."""
    victims = images.select(is_victim(images, settings, name=name))
    return victims.with_pixels(trigger(victims.pixels)).with_labels(np.full(len(victims), settings.target))
