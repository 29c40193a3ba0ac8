"""Hits and false alarms of `purify.when: auto`: data with unlearnable noise, and data without.

`DATASET.ATTACK.RATIO`: reliance (decant.purify.gate) on 5,000 rows (2,874 for digits), that share of which carries
noise; from 4.0 on the data is purified. `DATASET.clean`, `.label_noise`, `.badnet`: the same without such noise: never
poisoned, with 20 % wrong labels, with 5 % backdoored rows. `hits.RATIO`: share of dataset x attack that is found.
`false_alarms`: how many of the four datasets, never poisoned, are purified; `false_alarms.label_noise` and `.badnet`.
Noise at the paper's bounds on CIFAR-10, stronger on gray images (benchmarks/_rows.py). At full scale the datasets are
whole, and `clean_cifar10.points_lost` is what `auto` costs a ResNet-18 on clean CIFAR-10.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import Any

from benchmarks._rows import COLOUR, GRAY, TRAIN, ingested, partly, planted
from decant.data.images import Images
from decant.models.training import accuracy, train_classifier
from decant.purify.gate import RELIANCE_LIMIT, reliance
from decant.purify.settings import PurifySettings
from decant.purify.two_stage import purify
from decant.runtime import be_deterministic

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
ASKED = {  # which attacks, at which ratios: on a CPU all of them on digits, two on each of the others
    "small": lambda name: (tuple(GRAY), RATIOS) if name == "digits" else (("lsp", "ops"), (1.0,)),
    "full": lambda name: (tuple(GRAY), RATIOS),
}
ROWS = {"small": 5_000, "full": None}
NO_NOISE: dict[str, list[dict[str, Any]]] = {
    "clean": [],
    "label_noise": [{"name": "label_noise", "rate": 0.2}],
    "badnet": [{"name": "badnet", "mode": "dirty", "rate": 0.05}],
}


def run(scale: str, seed: int) -> dict[str, float]:
    found: dict[Case, float] = {}
    others: dict[str, float] = {}
    with ProcessPoolExecutor(int(os.environ.get("DECANT_JOBS", 1)), mp_context=get_context("spawn")) as pool:
        for values, more in pool.map(of_dataset, DATASETS, repeat(scale), repeat(seed)):
            found, others = found | values, others | more
    named = {f"{name}.{kind}" + (f".{ratio}" if ratio else ""): value for (name, kind, ratio), value in found.items()}
    return named | others | counted(found)


Case = tuple[str, str, float]
"""Dataset, attack or a key of NO_NOISE, share of the rows that carry noise."""


def of_dataset(name: str, scale: str, seed: int) -> tuple[dict[Case, float], dict[str, float]]:
    """The reliance of every case of a dataset; other figures."""
    be_deterministic()
    train, test = ingested(scale, name, ROWS[scale] if name != "digits" else None)
    found = {(name, kind, 0.0): asked(planted(train, attacks, seed), seed) for kind, attacks in NO_NOISE.items()}
    attacks, ratios = ASKED[scale](name)
    for attack in attacks:
        settings = (COLOUR if name == "cifar10" else GRAY)[attack]
        noisy = planted(train, [{"name": attack, **settings}], seed)
        for ratio in ratios:
            found[name, attack, ratio] = asked(partly(train, noisy, ratio, seed)[0], seed)
            print(f"  {name} {attack} {ratio}: {found[name, attack, ratio]:.2f}", flush=True)
    if scale == "full" and name == "cifar10":
        return found, {"clean_cifar10.points_lost": points_lost(train, test, found[name, "clean", 0.0], seed)}
    return found, {}


def counted(found: dict[Case, float]) -> dict[str, float]:
    """Hits and false alarms: where the reliance is high enough for `auto` to purify."""
    purified = {case: value >= RELIANCE_LIMIT for case, value in found.items()}
    figures: dict[str, float] = {}
    for ratio in RATIOS:
        hits = [hit for (_, _, share), hit in purified.items() if share == ratio]
        figures |= {f"hits.{ratio}": sum(hits) / len(hits)} if hits else {}
    for kind in NO_NOISE:
        key = "false_alarms" if kind == "clean" else f"false_alarms.{kind}"
        figures[key] = float(sum(purified[name, kind, 0.0] for name in DATASETS))
    return figures


def asked(received: Images, seed: int) -> float:
    """The reliance that `purify_2` would find: after both stages, on the rows as received."""
    _, x3 = purify(received, PurifySettings(), seed=seed)
    return reliance(received, x3, seed=seed).value


def points_lost(train: Images, test: Images, found: float, seed: int) -> float:
    """Accuracy on clean CIFAR-10 less that after `auto`; nothing when it leaves the rows alone."""
    if found < RELIANCE_LIMIT:
        return 0.0
    _, x3 = purify(train, PurifySettings(), seed=seed)
    before, after = (accuracy(train_classifier(rows, TRAIN["full"], seed=seed), test) or 0.0 for rows in (train, x3))
    return before - after
