"""Cells of the detector benchmarks: one dataset, one attack, one seed, every detector; DVC caches and resumes.

benchmarks/dvc.yaml lists them (`detect-small`, `detect-full`); `cells` brings them up to date. One cell trains one
model, so that all detectors, and the candidates of `affected-points`, judge the same one.

    python -m benchmarks._detect SCALE DATASET ATTACK SEED OUT

ATTACK is a name of ATTACKS; with `_noise` behind it, 2 % of the other rows carry a wrong label. Affected points are
drawn at random from triggered test images that the model predicts as the attacker wants.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score
from torch import nn

from benchmarks._cells import HERE, definition, run_all
from benchmarks._rows import TRAIN, ingested
from decant.attacks import base as attacks
from decant.attacks.base import load_attacks
from decant.data.images import Images, concat_images
from decant.detectors import candidates
from decant.detectors.base import Detection, DetectionCase, names
from decant.detectors.detect import detect
from decant.detectors.settings import DetectSettings
from decant.files import read_json, write_json
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.models.training import predict, train_classifier
from decant.runtime import be_deterministic

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
POINTS = (1, 3, 5)
AMONG = 200  # clean test images that the candidates stand among
REFERENCES = 10  # of a class, that LabelTrust's scorer knows
PAPER = DetectSettings(detector="delta", damping=0.0, same_label=False)


@dataclass(frozen=True)
class Scene:
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


def available() -> list[str]:
    """The attacks that there are, each with and without noise, and `clean`."""
    known = [name for name, entry in ATTACKS.items() if entry["name"] in attacks.names()]
    return ["clean", *(name + suffix for name in known for suffix in ("", "_noise"))]


def cells(scale: str, seed: int) -> dict[tuple[str, str], dict[str, float]]:
    """(dataset, attack) to the figures of every cell of a seed."""
    known = available()
    axes = definition()["stages"][f"detect-{scale}"]["matrix"]
    wanted = [(dataset, attack) for dataset in axes["dataset"] for attack in axes["attack"] if attack in known]
    run_all([f"detect-{scale}@{dataset}-{attack}-{seed}" for dataset, attack in wanted])
    return {cell: read_json(HERE / f"cells/detect/{'-'.join(cell)}-{seed}.json") for cell in wanted}


def scene(scale: str, dataset: str, attack: str, seed: int) -> Scene:
    be_deterministic()
    # `digits` is what `ingested` takes where no name is given.
    clean, test = ingested(scale, None if dataset == "digits" else dataset, DATASETS[scale][dataset])
    plain = attack.removesuffix("_noise")
    entries: list[dict[str, Any]] = []
    if plain != "clean":
        entries = [ATTACKS[plain] | (FULL[plain] if scale == "full" else {})]
    rng, train = np.random.default_rng([seed, 1]), clean
    planted = load_attacks(entries + [NOISE] * attack.endswith("_noise"))
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


def cell(scale: str, dataset: str, attack: str, seed: int) -> dict[str, float]:
    given = scene(scale, dataset, attack, seed)
    case = DetectionCase(
        model=given.model, train=given.train, settings=DetectSettings(), seed=seed, on_rows=lambda rows: None
    )
    found: dict[str, float] = {} if given.success is None else {"success": given.success}
    if given.success is not None and not len(given.affected):
        return found
    for name, detection, _ in innocent(given, case):
        found[f"{name}.flagged_share"] = float((detection.flagged & ~given.poisoned).mean())
    if given.success is None:
        return found
    for name in names():
        found |= {f"{name}.{key}": value for key, value in both_ways(given, case, name).items()}
    for points in POINTS:
        some = given.affected.select(np.arange(min(points, len(given.affected))))
        detection, _ = judged(given, case, DetectSettings(), some)
        found |= {f"points{points}.{key}": value for key, value in figures(given, detection).items()}
    return found | ranks(given)


def judged(given: Scene, case: DetectionCase, settings: DetectSettings, points: Images) -> tuple[Detection, float]:
    """(the detection, its seconds without the fit of the curvature, which all share)."""
    fitted, started = case.factors, time.perf_counter()
    found = detect(given.model, given.train, points, settings, seed=given.seed, fitted=fitted)
    return found, time.perf_counter() - started


def innocent(given: Scene, case: DetectionCase) -> Iterator[tuple[str, Detection, float]]:
    """What the default makes of points without a trigger: natural mistakes, and what is predicted rightly.

    Of all classes in clean data; in poisoned data of the class that is under attack, where a mistake is likeliest.
    """
    predicted, rng = predict(given.model, given.test.pixels).argmax(1), np.random.default_rng([given.seed, 2])
    asked = given.affected.labels[:1] if given.success is not None else np.arange(given.train.classes)
    for name, pool in (("mistakes", predicted != given.test.labels), ("right", predicted == given.test.labels)):
        rows = np.concatenate([rng.permutation(np.flatnonzero(pool & (predicted == label)))[:5] for label in asked])
        points = given.test.select(rows).with_labels(predicted[rows])
        yield name, *judged(given, case, DetectSettings(), points)


def both_ways(given: Scene, case: DetectionCase, name: str) -> dict[str, float]:
    """A detector's figures for one affected point with the same-label switch, and `any.*` without it.

    The switch only masks what a detector flags; but for those two which fit groups to the candidates.
    """
    one = given.affected.select(np.arange(1))
    settings = replace(PAPER if name == "delta" else DetectSettings(), detector=name, same_label=False)  # type: ignore[arg-type]
    anywhere, seconds = judged(given, case, settings, one)
    same = replace(anywhere, flagged=anywhere.flagged & (given.train.labels == one.labels[0]), false_alarms=None)
    if name in ("joint", "renormalised"):
        same, seconds = judged(given, case, replace(settings, same_label=True), one)
    found = figures(given, same, given.train.labels == one.labels[0]) | {"seconds": seconds}
    return found | {f"any.{key}": value for key, value in figures(given, anywhere).items()}


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


def ranks(given: Scene) -> dict[str, float]:
    """Whether true affected points lead the candidates, found by influence alone and with LabelTrust's scorer."""
    rng = np.random.default_rng([given.seed, 3])
    images = concat_images([given.test.select(rng.permutation(len(given.test))[:AMONG]), given.affected])
    true = np.arange(len(images)) >= len(images) - len(given.affected)
    known = [rng.permutation(np.flatnonzero(given.clean.labels == label))[:REFERENCES]
             for label in range(given.clean.classes)]  # fmt: skip
    scorer = TrustScorer.fit(given.clean.select(np.concatenate(known)), settings=VerifySettings(), seed=given.seed)
    ranked = candidates.rank(given.model, given.train, images.pixels, DetectSettings(), seed=given.seed, scorer=scorer)
    found = {}
    for name, scores in (("alone", ranked.concentration), ("with_trust", ranked.suspicion)):
        order = np.argsort(-scores, kind="stable")
        found[f"candidates.{name}.top1"] = float(true[order[0]])
        found[f"candidates.{name}.top5"] = float(true[order[:5]].any())
        found[f"candidates.{name}.average_precision"] = float(average_precision_score(true, scores))
    return found


def main(argv: list[str]) -> None:
    scale, dataset, attack, seed, out = argv
    write_json(Path(out), cell(scale, dataset, attack, int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
