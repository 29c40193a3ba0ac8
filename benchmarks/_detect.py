"""Cells of the detector benchmarks: one dataset, one attack, one seed, every detector; DVC caches and resumes.

benchmarks/dvc.yaml lists them (`detect-small`, `detect-full`); `cells` brings them up to date. One cell trains one
model, so that all detectors, and the candidates of `affected-points`, judge the same one.

    python -m benchmarks._detect SCALE DATASET POISONING SEED OUT

POISONING is a name of POISONINGS. Affected points are drawn at random from triggered test images that the model
predicts as the attacker wants. A cell's JSON:

    success     share of the triggered test images that the model predicts so; absent on clean data
    innocent    innocent rows that the default detector flags, of all, for points without a trigger (`innocent` below)
    detectors   each detector's figures from one affected point, among rows with the predicted label
    any_label   the same among all rows
    points      the default detector's figures from 1, 3 and 5 affected points
    candidates  how the true affected points rank among candidates: by influence `alone`, and `with_trust`
"""

import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score
from torch import nn

from benchmarks._cells import definition
from benchmarks._cells import figures as measured
from benchmarks._rows import TRAIN, ingested
from decant.attacks.base import load_attacks
from decant.data.images import Images, concat_images
from decant.detectors import candidates
from decant.detectors.base import Detection, DetectionCase, names
from decant.detectors.detect import detect
from decant.detectors.settings import DetectSettings
from decant.files import write_json
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.models.training import predict, train_classifier
from decant.runtime import be_deterministic
from decant.streams import stream

DATASETS: dict[str, dict[str, int | None]] = {  # scale to name: training rows
    "small": {"digits": None, "mnist": 2000, "fashion_mnist": 2000},
    "full": {"cifar10": None},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "badnet": {"name": "badnet", "mode": "dirty", "victim": 8, "target": 5, "rate": 0.03, "size": 6},
    "badnet_all": {"name": "badnet", "mode": "dirty", "victim": None, "target": 0, "rate": 0.03, "size": 6},
    "smooth": {"name": "smooth", "mode": "dirty", "victim": 8, "target": 5, "rate": 0.03},
    "witches_brew": {"name": "witches_brew", "victim": 8, "target": 5, "rate": 0.05},
}
FULL: dict[str, dict[str, Any]] = {  # CIFAR-10, triggers and rates as in the paper's code; surrogates are ResNet-18s
    "badnet": {"rate": 0.01, "patch": "dots"},
    "badnet_all": {"rate": 0.01, "patch": "dots"},
    "smooth": {"rate": 0.0025, "network": "resnet18"},
    "witches_brew": {"rate": 0.01, "network": "resnet18", "epochs": 40, "augment": "shift_flip"},
}
NOISE = {"name": "label_noise", "rate": 0.02}


@dataclass(frozen=True)
class Poisoning:
    """A key of ATTACKS, or None: no attack; and whether 2 % of the other rows carry a wrong label."""

    attack: str | None
    wrong_labels: bool = False


POISONINGS = {
    "clean": Poisoning(None),
    "badnet": Poisoning("badnet"),
    "badnet_noise": Poisoning("badnet", wrong_labels=True),
    "badnet_all": Poisoning("badnet_all"),
    "badnet_all_noise": Poisoning("badnet_all", wrong_labels=True),
    "smooth": Poisoning("smooth"),
    "smooth_noise": Poisoning("smooth", wrong_labels=True),
    "witches_brew": Poisoning("witches_brew"),
    "witches_brew_noise": Poisoning("witches_brew", wrong_labels=True),
}
POINTS = (1, 3, 5)
AMONG = 200
"""Clean test images among which the candidates are ranked."""
REFERENCES = 10
"""Rows of a class that LabelTrust's scorer knows."""
PAPER = DetectSettings(detector="delta", damping=0.0, same_label=False)


@dataclass(frozen=True)
class Scene:
    """A poisoned dataset, the model trained on it, and affected points."""

    train: Images
    test: Images
    clean: Images
    """The training rows before the attack."""
    poisoned: np.ndarray  # (n,) bool
    model: nn.Module
    seed: int
    success: float | None
    """Share of triggered test images that are predicted as the attacker wants; None on clean data."""
    affected: Images


Cells = dict[tuple[str, str], dict[str, Any]]
"""(dataset, poisoning) to what the cell measured."""


def cells(scale: str, seed: int) -> Cells:
    """Every cell of a seed."""
    axes = definition(f"detect-{scale}")["matrix"]
    wanted = [(dataset, poisoning, seed) for dataset in axes["dataset"] for poisoning in axes["poisoning"]]
    return {(str(cell[0]), str(cell[1])): found for cell, found in measured(f"detect-{scale}", wanted).items()}


def averaged(found: Cells, over: Collection[str], *group: str) -> dict[str, float]:
    """Each figure's mean over the cells of those poisonings, from that group of a cell's figures.

    An attack that never worked has no figures but its success.
    """
    chosen = [
        reduce(lambda part, name: part.get(name, {}), group, cell) for (_, name), cell in found.items() if name in over
    ]
    keys = dict.fromkeys(key for part in chosen for key, value in part.items() if isinstance(value, float))
    return {key: mean(part[key] for part in chosen if key in part) for key in keys}


def scene(scale: str, dataset: str, poisoning: str, seed: int) -> Scene:
    """Poison a dataset, train a model on it, and draw affected points."""
    be_deterministic()
    # `digits` is what `ingested` takes where no name is given.
    clean, test = ingested(scale, None if dataset == "digits" else dataset, DATASETS[scale][dataset])
    chosen = POISONINGS[poisoning]
    entries: list[dict[str, Any]] = []
    if chosen.attack is not None:
        entries = [ATTACKS[chosen.attack] | (FULL[chosen.attack] if scale == "full" else {})]
    rng, train = stream(seed, "benchmarks", "poison"), clean
    planted = load_attacks(entries + [NOISE] * chosen.wrong_labels)
    spared, poisoned = np.zeros(len(train), bool), np.zeros(len(train), bool)
    triggered = test.select(np.zeros(len(test), bool))
    for position, one in enumerate(planted):
        ready = one.prepared(clean, test, rng)
        result = ready.poison(train, rng, spared)
        train, spared = result.images, spared | result.rows
        if position == 0 and entries:
            poisoned, triggered = result.rows, ready.trigger(test, rng) or triggered
    model = train_classifier(train, TRAIN[scale], seed=seed)
    hit = predict(model, triggered.pixels).argmax(1) == triggered.labels if len(triggered) else np.zeros(0, bool)
    drawn = rng.permutation(np.flatnonzero(hit))[: max(POINTS)]
    success = float(hit.mean()) if entries else None
    return Scene(train, test, clean, poisoned, model, seed, success, triggered.select(drawn))


def cell(scale: str, dataset: str, poisoning: str, seed: int) -> dict[str, Any]:
    """Measure every detector on one poisoned dataset."""
    given = scene(scale, dataset, poisoning, seed)
    case = DetectionCase(
        model=given.model, train=given.train, settings=DetectSettings(), seed=seed, on_rows=lambda rows: None
    )
    found: dict[str, Any] = {} if given.success is None else {"success": given.success}
    if given.success is not None and not len(given.affected):
        return found
    found["innocent"] = {
        name: float((detection.flagged & ~given.poisoned).mean()) for name, detection, _ in innocent(given, case)
    }
    if given.success is None:
        return found
    found |= {"detectors": {}, "any_label": {}, "points": {}, "candidates": ranks(given)}
    for name in names():
        found["detectors"][name], found["any_label"][name] = both_ways(given, case, name)
    for points in POINTS:
        some = given.affected.select(np.arange(min(points, len(given.affected))))
        found["points"][str(points)] = figures(given, judged(given, case, DetectSettings(), some)[0])
    return found


def judged(given: Scene, case: DetectionCase, settings: DetectSettings, points: Images) -> tuple[Detection, float]:
    """What a detector flags, and its seconds without the fit of the curvature, which all share."""
    fitted, started = case.factors, time.perf_counter()
    found = detect(given.model, given.train, points, settings, seed=given.seed, fitted=fitted)
    return found, time.perf_counter() - started


def innocent(given: Scene, case: DetectionCase) -> Iterator[tuple[str, Detection, float]]:
    """Detections of the default for points without a trigger: natural mistakes, and points that are predicted rightly.

    Of all classes in clean data; in poisoned data of the class that is under attack, where a mistake is likeliest.
    """
    predicted, rng = (
        predict(given.model, given.test.pixels).argmax(1),
        stream(given.seed, "benchmarks", "innocent points"),
    )
    asked = given.affected.labels[:1] if given.success is not None else np.arange(given.train.classes)
    for name, pool in (("mistakes", predicted != given.test.labels), ("right", predicted == given.test.labels)):
        rows = np.concatenate([rng.permutation(np.flatnonzero(pool & (predicted == label)))[:5] for label in asked])
        points = given.test.select(rows).with_labels(predicted[rows])
        yield name, *judged(given, case, DetectSettings(), points)


def both_ways(given: Scene, case: DetectionCase, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """A detector's figures for one affected point, with the same-label switch and without it.

    The switch only masks what a detector flags; two detectors fit groups to the candidates and run twice.
    """
    one = given.affected.select(np.arange(1))
    settings = replace(PAPER if name == "delta" else DetectSettings(), detector=name, same_label=False)
    anywhere, seconds = judged(given, case, settings, one)
    same = replace(anywhere, flagged=anywhere.flagged & (given.train.labels == one.labels[0]), false_alarms=None)
    if name in ("joint", "renormalised"):
        same, seconds = judged(given, case, replace(settings, same_label=True), one)
    found = figures(given, same, given.train.labels == one.labels[0]) | {"seconds": seconds}
    return found, figures(given, anywhere)


def figures(given: Scene, found: Detection, counted: np.ndarray | None = None) -> dict[str, float]:
    """Precision (0 where nothing is flagged) and recall, average precision among the counted rows, rows flagged."""
    hits, flagged = int((found.flagged & given.poisoned).sum()), int(found.flagged.sum())
    counted = np.ones(len(given.train), bool) if counted is None else counted
    result = {
        "precision": hits / flagged if flagged else 0.0,
        "recall": hits / int(given.poisoned.sum()),
        "average_precision": float(average_precision_score(given.poisoned[counted], found.scores[counted])),
        "flagged": float(flagged),
    }
    return result if found.false_alarms is None else result | {"said_false_alarms": found.false_alarms}


def ranks(given: Scene) -> dict[str, dict[str, float]]:
    """Whether true affected points lead the candidates, found by influence alone and with LabelTrust's scorer."""
    rng = stream(given.seed, "benchmarks", "candidates")
    images = concat_images([given.test.select(rng.permutation(len(given.test))[:AMONG]), given.affected])
    true = np.arange(len(images)) >= len(images) - len(given.affected)
    known = [rng.permutation(np.flatnonzero(given.clean.labels == label))[:REFERENCES]
             for label in range(given.clean.classes)]  # fmt: skip
    scorer = TrustScorer.fit(given.clean.select(np.concatenate(known)), settings=VerifySettings(), seed=given.seed)
    ranked = candidates.rank(given.model, given.train, images.pixels, DetectSettings(), seed=given.seed, scorer=scorer)
    found = {}
    for name, scores in (("alone", ranked.concentration), ("with_trust", ranked.suspicion)):
        order = np.argsort(-scores, kind="stable")
        found[name] = {
            "top1": float(true[order[0]]),
            "top5": float(true[order[:5]].any()),
            "average_precision": float(average_precision_score(true, scores)),
        }
    return found


def main(argv: list[str]) -> None:
    scale, dataset, poisoning, seed, out = argv
    write_json(Path(out), cell(scale, dataset, poisoning, int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
