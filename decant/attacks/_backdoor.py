"""What every attack that plants a trigger has in common: which rows it takes, and what becomes of their labels."""

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from decant.attacks import Poisoned, class_index, draw_rows
from decant.images import Images


class Backdoor(Protocol):
    """The settings that such an attack has at least."""

    @property
    def mode(self) -> Literal["dirty", "consistent"]: ...
    @property
    def victim(self) -> int | None: ...
    @property
    def target(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def mix(self) -> float: ...


def plant(
    images: Images,
    settings: Backdoor,
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


def is_victim(images: Images, settings: Backdoor, *, name: str) -> np.ndarray:
    """(n,) bool: the rows of the victim class, or of every class but the target."""
    if settings.victim is None:
        return images.labels != settings.target
    return images.labels == class_index(images, settings.victim, key=f"{name}.victim")


def triggered(images: Images, settings: Backdoor, *, name: str, trigger: Callable[[np.ndarray], np.ndarray]) -> Images:
    """The victims' rows with the trigger, labelled as the attacker wants them predicted."""
    victims = images.select(is_victim(images, settings, name=name))
    return victims.with_pixels(trigger(victims.pixels)).with_labels(np.full(len(victims), settings.target))
