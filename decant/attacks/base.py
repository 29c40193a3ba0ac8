"""The interface of attacks: loading them from params.yaml, their result, and what they share."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from decant.data.images import Images
from decant.errors import SettingsError
from decant.registry import ATTACKS
from decant.settings import load


@dataclass(frozen=True)
class Poisoned:
    """A dataset after an attack."""

    images: Images
    rows: Bool[np.ndarray, " n"]
    """The rows that it changed."""


@dataclass(frozen=True)
class Attack:
    """An entry of `simulate.attacks`."""

    name: str
    module: ModuleType
    settings: Any

    def poison(self, images: Images, rng: np.random.Generator, taken: Bool[np.ndarray, " n"]) -> Poisoned:
        """The images with the attack on them; of an attack that takes rows, none on a `taken` one."""
        return self.module.poison(images, self.settings, rng, taken)

    def trigger(self, images: Images, rng: np.random.Generator) -> Images | None:
        """The test rows that it is aimed at, triggered, with the label wanted; None for an attack without a trigger."""
        make = getattr(self.module, "trigger", None)
        return make(images, self.settings, rng) if make else None

    def prepared(self, train: Images, test: Images, rng: np.random.Generator) -> "Attack":
        """The attack with what it needs to know of clean data; itself, and no random draw, where it needs nothing."""
        prepare = getattr(self.module, "prepare", None)
        return replace(self, settings=prepare(train, test, self.settings, rng)) if prepare else self

    def on_all_classes(self) -> "Attack":
        """The same trigger with every class but the target as victims, to measure poison success on all of them."""
        return replace(self, settings=replace(self.settings, victim=None))

    @property
    def takes_rows(self) -> bool:
        """Whether no other attack that takes rows may have its rows, too."""
        return kind_of(self.name) != "unlearnable"


def names() -> list[str]:
    """Every attack's name."""
    return ATTACKS.names()


def kind_of(name: str) -> str:
    """`unlearnable`, `label` or `backdoor`."""
    return importlib.import_module(f"decant.attacks.{name}").KIND


def load_attacks(entries: Iterable[Mapping[str, Any]]) -> list[Attack]:
    """The attacks of `simulate.attacks`. Raises SettingsError for an unknown name or parameter."""
    attacks = []
    for position, entry in enumerate(entries):
        block = f"simulate.attacks[{position}]"
        name: Any = entry.get("name")
        module = ATTACKS.member(name, f"{block}.name")
        rest = {key: value for key, value in entry.items() if key != "name"}
        attacks.append(Attack(name, module, load(module.Settings, rest, block)))
    return attacks


def draw_rows(
    pool: Bool[np.ndarray, " n"], wanted: int, rng: np.random.Generator, *, key: str
) -> Bool[np.ndarray, " n"]:
    """`wanted` rows of the pool, drawn at random, as a mask.

    Raises: SettingsError, which names the parameter `key`, when there are too few.
    """
    candidates = np.flatnonzero(pool)
    if wanted > len(candidates):
        raise SettingsError(f"{key}: asks for {wanted} rows where {len(candidates)} can be taken; lower it")
    mask = np.zeros(len(pool), bool)
    mask[rng.choice(candidates, wanted, replace=False)] = True
    return mask


def perturbed_rows(images: Images, rate: float, rng: np.random.Generator, *, key: str) -> Bool[np.ndarray, " n"]:
    """The rows that an unlearnable perturbation lies on: a share `rate` of all, drawn at random."""
    return draw_rows(np.ones(len(images), bool), round(rate * len(images)), rng, key=key)


def add_perturbations(
    images: Images, rows: Bool[np.ndarray, " n"], perturbations: Float[np.ndarray, "m h w c"]
) -> Poisoned:
    """The images with one perturbation, in grey levels, on each of the m `rows`; rounded and clipped to [0, 255].

    Perturbations of whole grey levels within a bound stay within it: rounding changes nothing, clipping only shrinks.
    """
    pixels = images.pixels.copy()
    pixels[rows] = np.clip(np.rint(pixels[rows] + perturbations), 0, 255).astype(np.uint8)
    return Poisoned(images.with_pixels(pixels), rows)


def class_index(images: Images, label: int, *, key: str) -> int:
    """`label`, checked to be a class of the images. Raises: SettingsError, which names the parameter `key`."""
    if not 0 <= label < images.classes:
        raise SettingsError(f"{key}: a class from 0 to {images.classes - 1} expected, {label} found")
    return label
