"""Cells of the label benchmarks: one dataset, one poisoning, one method, one seed; DVC caches and resumes.

benchmarks/dvc.yaml lists them (`label-loops`: LabelTrust on all of MNIST, `label-methods`: every method on less);
`cells` brings the asked ones up to date and returns their figures.

    python -m benchmarks._labels DATASET POISONING METHOD SEED OUT

DATASET, POISONING: names of DATASETS and POISONINGS below. METHOD: one of LABELTRUST, or a file of
decant/label_checks. LabelTrust's expert is shown 350 rows in all, references included; rows that turn out to be wrong
while the references are drawn leave fewer for the last loop. A label check knows 35 random rows of every given label,
with their right labels.

Which rows count? On all of MNIST those that nobody reviewed, as in the paper; as the loops take the hardest rows out,
that flatters them (by .5 points of FRR at most). Elsewhere a third of the rows, drawn at random: no expert is ever
shown one of these, and every method is counted on the same.

A cell's JSON: `loops`, the figures before any loop and after each (one entry for a label check); for a backdoor also
`poison_before` and `poison_after`.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks._cells import figures as measured
from benchmarks._rows import ingested, planted
from benchmarks._stages import dataset
from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.files import write_json
from decant.label_checks.base import CheckCase, judge
from decant.labeltrust.experts import Oracle
from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import by_round
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, train_classifier
from decant.runtime import be_deterministic
from decant.streams import stream

TRAIN = TrainSettings(epochs=10)


@dataclass(frozen=True)
class Dataset:
    """A source, how much of it is taken, and how methods are measured on it."""

    source: str
    rows: int | None
    """Training rows; None: all."""
    train: TrainSettings = TRAIN
    """The classifier of the rivals that train one."""
    withholds: bool = True
    """A third of the rows is withheld from every expert, and counted; else what nobody reviewed is."""


DATASETS = {
    "mnist": Dataset("mnist", None, withholds=False),
    "mnist12k": Dataset("mnist", 12_000),
    "mnist12k_resnet18": Dataset("mnist", 12_000, replace(TRAIN, network="resnet18")),
    "fashion12k": Dataset("fashion_mnist", 12_000),
    "intel": Dataset("intel100", None),
    "cifar10n": Dataset("cifar10", 12_000),
}
WRONG = 0.09375  # 6 of every 64 rows, as in the paper: 5,625 of 60,000
POISONINGS: dict[str, list[dict[str, Any]]] = {
    "clean": [],
    "random": [{"name": "label_noise", "rate": WRONG}],
    "random1": [{"name": "label_noise", "rate": 0.01}],
    "trigger": [{"name": "badnet", "mode": "dirty", "victim": None, "target": 0, "rate": WRONG}],
    "trigger1": [{"name": "badnet", "mode": "dirty", "victim": None, "target": 0, "rate": 0.01}],
    "blend": [{"name": "blend", "mode": "dirty", "victim": None, "target": 0, "rate": WRONG}],
    "clean_label": [{"name": "badnet", "mode": "consistent", "victim": None, "target": 0, "rate": 0.02}],
    "confusable": [{"name": "label_noise", "rate": WRONG, "pairs": "circular"}],
    "random30": [{"name": "label_noise", "rate": 0.3}],
    "random60": [{"name": "label_noise", "rate": 0.6}],
    "random80": [{"name": "label_noise", "rate": 0.8}],
}
BACKDOORS = ("trigger", "trigger1", "blend", "clean_label")
PAIRS = {  # the poisoning "pair": a fifth of a class goes by the name of one that people confuse it with
    "mnist": [{"name": "label_noise", "rate": 0.02, "pairs": {4: 9}}],
    "fashion_mnist": [{"name": "label_noise", "rate": 0.02, "pairs": {6: 0}}],  # shirt to T-shirt
}
LOOPS = 5
REFERENCES = 10 + 5 * LOOPS  # rows of a label that LabelTrust's expert has seen in the end, and its rivals are told
BUDGET = 350  # reviews in all, as many as the references and five loops of ten classes would take without a wrong one
HELD_OUT = 1 / 3
PLUS = VerifySettings(threshold="far=0.001", passes=2, rounds=LOOPS, budget=BUDGET)


@dataclass(frozen=True)
class LabelTrust:
    """LabelTrust with these parameters, and an expert who gives this share of wrong answers."""

    settings: VerifySettings = PLUS
    wrong_answers: float = 0.0


LABELTRUST = {
    "plus": LabelTrust(),
    "paper": LabelTrust(VerifySettings(mode="paper", rounds=LOOPS, steps=1000, budget=BUDGET)),
    "random_choice": LabelTrust(replace(PLUS, choice="random")),
    "erring_expert": LabelTrust(wrong_answers=0.05),
    "plus_classifier": LabelTrust(replace(PLUS, classifier=True)),
    "plus_pretrain": LabelTrust(replace(PLUS, pretrain=2000)),
}


Cell = tuple[str, str, str, int]
"""Dataset, poisoning, method, seed."""


def cells(stage: str, wanted: list[Cell]) -> dict[Cell, dict[str, Any]]:
    """What the cells measured. stage: label-loops or label-methods."""
    return cast(dict[Cell, dict[str, Any]], measured(stage, wanted))


def after(found: dict[str, Any], loop: int) -> dict[str, float]:
    """A cell's figures after that loop, or after the last one: where many labels are wrong, the budget of reviews may
    end before the loops do."""
    return found["loops"][min(loop, len(found["loops"]) - 1)]


class ErringExpert(Oracle):
    """Answers a share of the questions with another class."""

    def __init__(self, images: Images, truth: pd.DataFrame, share: float, seed: int):
        super().__init__(images, truth)
        self._share, self._classes = share, images.classes
        self._rng = stream(seed, "benchmarks", "wrong answers")

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        right = super().ask(ids)
        shifts = self._rng.integers(1, self._classes, len(right)) * (self._rng.random(len(right)) < self._share)
        return {
            row: int((label + shift) % self._classes) for (row, label), shift in zip(right.items(), shifts, strict=True)
        }


class Rows(NamedTuple):
    """A dataset as received, and what is known of it."""

    received: Images
    test: Images
    right: np.ndarray
    """(n,) right labels of the received rows."""
    bad: np.ndarray
    """(n,) bool: rows with a wrong label or with pixels that an attack changed."""


def case(name: str, poisoning: str, seed: int) -> Rows:
    """The rows of a cell."""
    chosen = DATASETS[name]
    train, test = ingested("small", chosen.source, chosen.rows)
    if poisoning == "human":  # the labels of CIFAR-10N, "worse"
        found = pd.read_parquet(Path(dataset("cifar10")).with_name("cifar10n") / "labels.parquet").set_index("index")
        received = train.with_labels(found.loc[train.ids, "worse_label"].to_numpy())
    else:
        received = planted(train, PAIRS[chosen.source] if poisoning == "pair" else POISONINGS[poisoning], seed)
    touched = (received.pixels != train.pixels).any(axis=(1, 2, 3))
    return Rows(received, test, train.labels, touched | (received.labels != train.labels))


def figures(score: np.ndarray, flagged: np.ndarray, bad: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """Of the counted rows: FRR, TRR, precision of what is flagged, AUROC, precision at a recall of 80 %."""
    score, flagged, bad = score[counted], flagged[counted], bad[counted]
    order = np.argsort(-score, kind="stable")
    at_80 = int(np.searchsorted(bad[order].cumsum(), 0.8 * bad.sum())) + 1
    return {
        "frr": float(flagged[~bad].mean()),
        "trr": float(flagged[bad].mean()),
        "precision": float(bad[flagged].mean()) if flagged.any() else 1.0,
        "auroc": float(roc_auc_score(bad, score)),
        "average_precision": float(average_precision_score(bad, score)),
        "precision_at_80": float(bad[order[:at_80]].mean()),
    }


def held_out(name: str, rows: Rows, seed: int) -> np.ndarray | None:
    """(n,) bool: the rows that count, where these are not all that nobody reviewed."""
    if not DATASETS[name].withholds:
        return None
    return stream(seed, "benchmarks", "withheld rows").random(len(rows.bad)) < HELD_OUT


def loops(
    rows: Rows, method: str, seed: int, withheld: np.ndarray | None
) -> Iterator[tuple[VerifyOutcome, dict[str, float]]]:
    """LabelTrust's outcome before any loop and after each, with its figures."""
    received = rows.received
    chosen = LABELTRUST[method]
    truth = pd.DataFrame({"id": received.ids, "attack": "planted", "original_label": rows.right})
    expert = ErringExpert(received, truth, chosen.wrong_answers, seed)
    started = time.perf_counter()
    for outcome in by_round(received, expert, chosen.settings, seed=seed, withheld=withheld):
        counted = ~np.isin(received.ids, outcome.reviews["id"]) if withheld is None else withheld
        verdicts = outcome.verdicts
        found = figures(verdicts["score"].to_numpy(), verdicts["flagged"].to_numpy(), rows.bad, counted)
        reviews = {"reviews": float(len(outcome.reviews)), "noise_rate": outcome.label_noise_rate or 0.0}
        yield outcome, found | reviews | {"seconds": time.perf_counter() - started}


def cell(name: str, poisoning: str, method: str, seed: int) -> dict[str, Any]:
    """Measure one method on one poisoned dataset."""
    rows = case(name, poisoning, seed)
    withheld = held_out(name, rows, seed)
    if method not in LABELTRUST:
        assert withheld is not None, name
        return {"loops": [checked(rows, method, DATASETS[name].train, seed, withheld)]}
    each = list(loops(rows, method, seed, withheld))
    found: dict[str, Any] = {"loops": [figure for _, figure in each]}
    if poisoning in BACKDOORS:
        kept = rows.received.select(~each[-1][0].verdicts["flagged"].to_numpy())
        for key, images in (("poison_before", rows.received), ("poison_after", kept)):
            found[key] = poison_success(images, rows.test, poisoning, seed)
    return found


def checked(rows: Rows, method: str, train: TrainSettings, seed: int, withheld: np.ndarray) -> dict[str, float]:
    """A label check's figures."""
    received = rows.received
    order = stream(seed, "benchmarks", "known rows").permutation(np.flatnonzero(~withheld))
    given = received.labels[order]
    known = np.concatenate([order[given == label][:REFERENCES] for label in range(received.classes)])
    started = time.perf_counter()
    case = CheckCase(images=received, references=known, answers=rows.right[known], train=train, seed=seed)
    check = judge(method, case)
    found = figures(check.suspicion, check.flagged, rows.bad, withheld)
    return found | {"seconds": time.perf_counter() - started}


def poison_success(rows: Images, test: Images, poisoning: str, seed: int) -> float:
    """Share of triggered test rows that a small network trained on the rows gives the attacker's label."""
    triggered = load_attacks(POISONINGS[poisoning])[0].trigger(test, stream(seed, "benchmarks", "trigger"))
    assert triggered is not None
    return accuracy(train_classifier(rows, TRAIN, seed=seed), triggered) or 0.0


def main(argv: list[str]) -> None:
    name, poisoning, method, seed, out = argv
    be_deterministic()
    write_json(Path(out), cell(name, poisoning, method, int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
