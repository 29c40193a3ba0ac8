"""What every attack that plants a trigger has in common: which rows carry it, and with which label."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from decant.attacks.base import Poisoned, class_index, draw_rows
from decant.data.images import Images
from decant.settings import Block, Count, Fraction

Pixels = UInt8[np.ndarray, "m h w c"]


@dataclass(frozen=True, kw_only=True)
class Aim(Block):
    """Which class is to be misclassified as which."""

    victim: Count | None = 8
    """Class whose test images are to be misclassified; null: every class but the target."""
    target: Count = 5
    """Class that the attacker wants predicted."""


@dataclass(frozen=True, kw_only=True)
class Trigger(Aim):
    """Parameters of every attack that plants a trigger."""

    mode: Literal["dirty", "consistent"] = "dirty"
    """`dirty`: victims' rows, relabelled to the target; `consistent`: rows of the target class, labels stay right."""
    rate: Fraction = 0.02
    """Share of all rows that carry the trigger."""
    mix: Fraction = 0.5
    """`consistent`: weight of the victim's image in the blend that carries the trigger."""


def plant(
    images: Images,
    settings: Trigger,
    rng: np.random.Generator,
    taken: Bool[np.ndarray, " n"],
    *,
    name: str,
    trigger: Callable[[Pixels], Pixels],
) -> Poisoned:
    """Plants the trigger on a share of the rows.

    `dirty`: rows of the victims get the trigger and the target label. `consistent`: rows of the target class are
    blended with a victim's image and get the trigger; their label is right.

    name: the attack's, for error messages; trigger: puts the trigger on pixels.
    """
    target = class_index(images, settings.target, key=f"{name}.target")
    victims = is_victim(images, settings, name=name)
    pool = (victims if settings.mode == "dirty" else images.labels == target) & ~taken
    rows = draw_rows(pool, round(settings.rate * len(images)), rng, key=f"{name}.rate")
    pixels, labels = images.pixels.copy(), images.labels.copy()
    if settings.mode == "consistent":
        partners = rng.choice(np.flatnonzero(victims), rows.sum())
        blended = (1 - settings.mix) * pixels[rows] + settings.mix * images.pixels[partners]
        pixels[rows] = np.rint(blended).astype(np.uint8)
    pixels[rows] = trigger(pixels[rows])
    labels[rows] = target
    return Poisoned(images.with_pixels(pixels).with_labels(labels), rows)


def is_victim(images: Images, settings: Aim, *, name: str) -> Bool[np.ndarray, " n"]:
    """The rows of the victim class, or of every class but the target."""
    if settings.victim is None:
        return images.labels != settings.target
    return images.labels == class_index(images, settings.victim, key=f"{name}.victim")


def triggered(images: Images, settings: Trigger, *, name: str, trigger: Callable[[Pixels], Pixels]) -> Images:
    """The victims' rows with the trigger, labelled with the target class."""
    victims = images.select(is_victim(images, settings, name=name))
    return victims.with_pixels(trigger(victims.pixels)).with_labels(np.full(len(victims), settings.target))
