"""Rows to measure purification on: real data, noise at stated bounds, mixtures of poisoned and clean rows."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from benchmarks._stages import dataset
from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.data.settings import IngestSettings
from decant.data.tables import read_images
from decant.models.settings import TrainSettings
from decant.streams import stream

ROWS = {"small": ("digits", None), "full": ("cifar10", None), "full100": ("cifar100", None)}
"""Dataset and number of training rows of a scale."""

Attacks = dict[str, dict[str, Any]]
GRAY: Attacks = {  # the paper's bounds do nothing to pictures that are nearly black and white
    "lsp": {"strength": 32, "patch": 4},
    "ops": {},
    "ar": {"strength": 32},
    "pil": {"strength": 32},
    "em": {"strength": 64, "rounds": 30, "steps": 20},
}
COLOUR: Attacks = {  # the paper's bounds: 8/255, l2 = 1 (an RMS of 4.6 grey levels), one pixel
    "lsp": {"strength": 4.6, "patch": 8},
    "ops": {},
    "ar": {"strength": 4.6},
    "pil": {"strength": 8},
    "em": {"strength": 8, "rounds": 12, "steps": 10},
}
ATTACKS: dict[str, Attacks] = {
    "small": GRAY,
    "full": {
        **COLOUR,
        "em": {"strength": 8, "network": "resnet18"},
        "tap": {"strength": 8, "network": "resnet18"},
        "sep": {"strength": 8, "network": "resnet18"},
        "rem": {"strength": 8, "network": "resnet18"},
    },
}
ATTACKS["full100"] = ATTACKS["full"]
TRAIN = {
    "small": TrainSettings(epochs=10),
    "full": TrainSettings(network="resnet18", epochs=60, batch_size=128, lr=0.1, augment="shift_flip"),
}
TRAIN["full100"] = TRAIN["full"]


def ingest_to(folder: Path, scale: str, name: str | None = None, limit: int | None = None) -> None:
    """Write train.parquet and test.parquet into a folder: the scale's dataset, or a named one."""
    from tasks import ingest

    if name is None:
        name, limit = ROWS[scale]
    source = "digits" if name == "digits" else dataset(name)
    folder.mkdir(parents=True, exist_ok=True)
    ingest.run(seed=0, ingest=IngestSettings(source=source, limit=limit), out=folder)


def ingested(scale: str, name: str | None = None, limit: int | None = None) -> tuple[Images, Images]:
    """(training rows, test rows)."""
    with tempfile.TemporaryDirectory() as folder:
        ingest_to(Path(folder), scale, name, limit)
        return read_images(Path(folder, "train.parquet")), read_images(Path(folder, "test.parquet"))


def entry(scale: str, attack: str, *, strength: float = 1, percent: int = 100) -> dict[str, Any]:
    """An entry of `simulate.attacks`: so many times as strong as usual at that scale, on a share of the rows."""
    found: dict[str, Any] = {"name": attack, **ATTACKS[scale][attack], "rate": percent / 100}
    return found if strength == 1 else found | {"strength": strength * found["strength"]}


def planted(images: Images, entries: list[dict[str, Any]], seed: int) -> Images:
    """The rows with those attacks (as in `simulate.attacks`) on them."""
    rng = stream(seed, "benchmarks", "poison")
    for attack in load_attacks(entries):
        images = attack.poison(images, rng, np.zeros(len(images), bool)).images
    return images


def partly(clean: Images, noisy: Images, ratio: float, seed: int) -> tuple[Images, Bool[np.ndarray, " n"]]:
    """A share of the rows from the noisy set and the rest from the clean one; and which are the noisy ones."""
    taken = np.zeros(len(clean), bool)
    order = stream(seed, "benchmarks", "poisoned rows").permutation(len(clean))
    taken[order[: round(ratio * len(clean))]] = True
    return clean.with_pixels(np.where(taken[:, None, None, None], noisy.pixels, clean.pixels)), taken
