"""Cells of the label benchmarks: one dataset, one poisoning, one method, one seed; DVC caches and resumes.

benchmarks/dvc.yaml lists them (`label-loops`: LabelTrust on all of MNIST, `label-methods`: every method on less);
`cells` brings the asked ones up to date and returns their figures.

    python -m benchmarks._labels DATASET POISONING METHOD SEED OUT

METHOD is `plus` or `paper` (LabelTrust; also `plus_random`, whose expert sees rows drawn at random, `plus_erring`,
whose expert is wrong in 5 % of the answers, `plus_classifier`, with `verify.classifier`, and `plus_pretrain`, with
2,000 steps of `verify.pretrain`), or a file of decant/label_checks. LabelTrust's expert is shown 350 rows in all,
references included: the rows that turn out to be wrong while the references are drawn are at the cost of the last
loop. A label check knows 35 random rows of every given label, what is wrong among them put right.

Which rows count? On all of MNIST those that nobody reviewed, as in the paper; as the loops take the hardest rows out,
that flatters them (by .5 points of FRR at most). Elsewhere a third of the rows, drawn at random: no expert is ever
shown one of these, and every method is counted on the same.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks._cells import HERE, run_all
from benchmarks._rows import ingested, planted
from benchmarks._stages import dataset
from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.files import read_json, write_json
from decant.label_checks.base import CheckCase, judge
from decant.labeltrust.experts import Oracle
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import VerifyOutcome, by_round
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, train_classifier
from decant.runtime import be_deterministic

TRAIN = TrainSettings(epochs=10)
DATASETS = {  # name here: (dataset, training rows, classifier of the rivals who train one)
    "mnist": ("mnist", None, TRAIN),
    "mnist12k": ("mnist", 12_000, TRAIN),
    "mnist12k_resnet18": ("mnist", 12_000, replace(TRAIN, network="resnet18")),
    "fashion12k": ("fashion_mnist", 12_000, TRAIN),
    "intel": ("intel100", None, TRAIN),
    "cifar10n": ("cifar10", 12_000, TRAIN),
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
SETTINGS = {
    "plus": VerifySettings(threshold="far=0.001", passes=2, rounds=LOOPS, budget=BUDGET),
    "paper": VerifySettings(mode="paper", rounds=LOOPS, steps=1000, budget=BUDGET),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "erring": {},  # another expert
    "random": {"choice": "random"},
    "classifier": {"classifier": True},
    "pretrain": {"pretrain": 2000},
}
ERRORS = 0.05
HELD_OUT = 1 / 3


Cell = tuple[str, str, str, int]
"""Dataset, poisoning, method, seed."""


def cells(stage: str, wanted: list[Cell]) -> dict[Cell, dict[str, float]]:
    """The cells' figures. `stage`: label-loops or label-methods."""
    run_all([f"{stage}@{'-'.join(map(str, cell))}" for cell in wanted])
    return {cell: read_json(HERE / f"cells/labels/{'-'.join(map(str, cell))}.json") for cell in wanted}


def in_the_end(found: dict[str, float], loop: int = LOOPS) -> str:
    """What precedes the figures of that loop, or of the last one before it: where many labels are wrong, the budget may
    end before the loops. Empty for a label check, which has none."""
    return next((f"loop{number}." for number in range(loop, -1, -1) if f"loop{number}.frr" in found), "")


class ErringExpert(Oracle):
    """Answers a share of the questions with another class."""

    def __init__(self, images: Images, truth: pd.DataFrame, seed: int):
        super().__init__(images, truth)
        self._rng, self._classes = np.random.default_rng([seed, 11]), images.classes

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        right = super().ask(ids)
        shifts = self._rng.integers(1, self._classes, len(right)) * (self._rng.random(len(right)) < ERRORS)
        return {
            row: int((label + shift) % self._classes) for (row, label), shift in zip(right.items(), shifts, strict=True)
        }


class Rows(NamedTuple):
    received: Images
    test: Images
    right: np.ndarray
    """(n,) the received rows' right labels."""
    bad: np.ndarray
    """(n,) bool: the rows to be found, for their label or for what was done to their picture."""


def case(name: str, poisoning: str, seed: int) -> Rows:
    source, rows, _ = DATASETS[name]
    train, test = ingested("small", source, rows)
    if poisoning == "human":  # the labels of CIFAR-10N, "worse"
        found = pd.read_parquet(Path(dataset("cifar10")).with_name("cifar10n") / "labels.parquet").set_index("index")
        received = train.with_labels(found.loc[train.ids, "worse_label"].to_numpy())
    else:
        received = planted(train, PAIRS[source] if poisoning == "pair" else POISONINGS[poisoning], seed)
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
    return None if name == "mnist" else np.random.default_rng([seed, 15]).random(len(rows.bad)) < HELD_OUT


def loops(
    rows: Rows, method: str, seed: int, withheld: np.ndarray | None
) -> Iterator[tuple[VerifyOutcome, dict[str, float]]]:
    """LabelTrust's outcome before any loop and after each, with its figures."""
    received = rows.received
    kind, _, variant = method.partition("_")
    truth = pd.DataFrame({"id": received.ids, "attack": "planted", "original_label": rows.right})
    expert = ErringExpert(received, truth, seed) if variant == "erring" else Oracle(received, truth)
    settings = replace(SETTINGS[kind], **VARIANTS[variant])
    started = time.perf_counter()
    for outcome in by_round(received, expert, settings, seed=seed, withheld=withheld):
        counted = ~np.isin(received.ids, outcome.reviews["id"]) if withheld is None else withheld
        verdicts = outcome.verdicts
        found = figures(verdicts["score"].to_numpy(), verdicts["flagged"].to_numpy(), rows.bad, counted)
        reviews = {"reviews": float(len(outcome.reviews)), "noise_rate": outcome.label_noise_rate or 0.0}
        yield outcome, found | reviews | {"seconds": time.perf_counter() - started}


def cell(name: str, poisoning: str, method: str, seed: int) -> dict[str, float]:
    rows = case(name, poisoning, seed)
    withheld = held_out(name, rows, seed)
    if method.split("_")[0] not in SETTINGS:
        assert withheld is not None, name
        return checked(rows, method, DATASETS[name][2], seed, withheld)
    each = list(loops(rows, method, seed, withheld))
    found = {f"loop{loop}.{key}": value for loop, (_, figure) in enumerate(each) for key, value in figure.items()}
    if poisoning in BACKDOORS:
        kept = rows.received.select(~each[-1][0].verdicts["flagged"].to_numpy())
        for key, images in (("poison_before", rows.received), ("poison_after", kept)):
            found[key] = poison_success(images, rows.test, poisoning, seed)
    return found


def checked(rows: Rows, method: str, train: TrainSettings, seed: int, withheld: np.ndarray) -> dict[str, float]:
    """A label check's figures."""
    received = rows.received
    order = np.random.default_rng([seed, 14]).permutation(np.flatnonzero(~withheld))
    given = received.labels[order]
    known = np.concatenate([order[given == label][:REFERENCES] for label in range(received.classes)])
    started = time.perf_counter()
    case = CheckCase(images=received, references=known, answers=rows.right[known], train=train, seed=seed)
    check = judge(method, case)
    found = figures(check.suspicion, check.flagged, rows.bad, withheld)
    return found | {"seconds": time.perf_counter() - started}


def poison_success(rows: Images, test: Images, poisoning: str, seed: int) -> float:
    """Share of triggered test rows that a small network trained on the rows gives the attacker's label."""
    triggered = load_attacks(POISONINGS[poisoning])[0].trigger(test, np.random.default_rng([seed, 12]))
    assert triggered is not None
    return accuracy(train_classifier(rows, TRAIN, seed=seed), triggered) or 0.0


def main(argv: list[str]) -> None:
    name, poisoning, method, seed, out = argv
    be_deterministic()
    write_json(Path(out), cell(name, poisoning, method, int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
