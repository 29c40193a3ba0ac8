"""What an attack is: how one is loaded from params.yaml, and what its poisoning yields."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from decant.data.images import Images
from decant.errors import SettingsError
from decant.registry import Family
from decant.settings import load

FAMILY = Family("decant.attacks", ("poison",))


@dataclass(frozen=True)
class Poisoned:
    """What an attack made of a dataset."""

    images: Images
    rows: np.ndarray
    """(n,) bool: which rows it changed."""


@dataclass(frozen=True)
class Attack:
    name: str
    module: ModuleType
    settings: Any

    def poison(self, images: Images, rng: np.random.Generator, spared: np.ndarray) -> Poisoned:
        return self.module.poison(images, self.settings, rng, spared)

    def trigger(self, images: Images, rng: np.random.Generator) -> Images | None:
        """The triggered test rows, or None when this attack has no trigger."""
        make = getattr(self.module, "trigger", None)
        return make(images, self.settings, rng) if make else None

    def prepared(self, train: Images, test: Images, rng: np.random.Generator) -> "Attack":
        """The attack with what it needs to know of clean data; itself (and no random draw) where that is nothing."""
        prepare = getattr(self.module, "prepare", None)
        return replace(self, settings=prepare(train, test, self.settings, rng)) if prepare else self

    def on_all_classes(self) -> "Attack":
        """The same trigger, with every class but the target as its victims: to measure how far it reaches."""
        return replace(self, settings=replace(self.settings, victim=None))

    @property
    def takes_rows(self) -> bool:
        return kind_of(self.name) != "noise"


def names() -> list[str]:
    return FAMILY.names()


def kind_of(name: str) -> str:
    """`noise`, `label` or `backdoor`."""
    return importlib.import_module(f"decant.attacks.{name}").KIND


def load_attacks(entries: Iterable[Mapping[str, Any]]) -> list[Attack]:
    """The attacks of `simulate.attacks`. Raises SettingsError for an unknown name or parameter."""
    attacks = []
    for position, entry in enumerate(entries):
        block = f"simulate.attacks[{position}]"
        name: Any = entry.get("name")
        module = FAMILY.member(name, f"{block}.name")
        rest = {key: value for key, value in entry.items() if key != "name"}
        attacks.append(Attack(name, module, load(module.Settings, rest, block)))
    return attacks


def draw_rows(pool: np.ndarray, wanted: int, rng: np.random.Generator, *, key: str) -> np.ndarray:
    """`wanted` of the rows where `pool` (n,) bool is true, as a mask. Raises SettingsError when there are too few."""
    candidates = np.flatnonzero(pool)
    if wanted > len(candidates):
        raise SettingsError(f"{key}: asks for {wanted} rows where {len(candidates)} can be taken; lower it")
    mask = np.zeros(len(pool), bool)
    mask[rng.choice(candidates, wanted, replace=False)] = True
    return mask


def carriers(images: Images, rate: float, rng: np.random.Generator, *, key: str) -> np.ndarray:
    """The rows, (n,) bool, that carry a noise attack: a share `rate` of all, whatever else was done to them."""
    return draw_rows(np.ones(len(images), bool), round(rate * len(images)), rng, key=key)


def add_noise(images: Images, rows: np.ndarray, noise: np.ndarray) -> Poisoned:
    """`noise` (rows.sum(), h, w, c) in grey levels on top of `rows`, rounded and clipped to [0, 255].

    Noise of whole grey levels within a bound stays within it: rounding then changes nothing, and clipping only shrinks.
    """
    pixels = images.pixels.copy()
    pixels[rows] = np.clip(np.rint(pixels[rows] + noise), 0, 255).astype(np.uint8)
    return Poisoned(images.with_pixels(pixels), rows)


def class_index(images: Images, label: int, *, key: str) -> int:
    """`label`, checked to be a class of the images."""
    if not 0 <= label < images.classes:
        raise SettingsError(f"{key}: a class from 0 to {images.classes - 1} expected, {label} found")
    return label
