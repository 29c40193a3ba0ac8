"""Unlearning methods compared: outcome and seconds, told all of the poison, half of it, none, or what is detected.

`DATASET.ATTACK.FOUND.METHOD.FIGURE`, FOUND being what the method is told to forget:

    all        every poisoned row
    half       a random half of them; the other half stays among the kept rows
    innocent   as many innocent rows that carry the target's label. A method that ends the attack here too has not
               unlearnt the poison but broken the model
    detected   the rows that `detect` flags by default, told one affected point: what a user gets. Where it flags none,
               the model stays as trained, and that is measured
    rest       the poisoned rows that were not flagged, in the place of those that were: the complement test of the
               paper's Table 3, after which the attack should live on; left out where all were flagged

FIGURE: `accuracy` on clean test rows, `poison_success` on the victim class's triggered rows, `poison_success_all` on
every class's but the target's, `seconds`. METHOD: a file of decant/unlearning, `trained` (the model before), or `auto`
(which is told 5 affected points); only the default one for `detected` and `rest`. `DATASET.ATTACK.detected.precision`
and `recall` are those of the flagged rows (precision 0 where there are none). `ATTACK.detected.poison_success`,
`detected.poison_success` and `detected.accuracy_lost` (since `trained`) are those of the default method with what was
detected, the worst of the cases.
The first table shows accuracy / poison success in %.
small: digits and 3,000 rows of MNIST, 3 % of the rows poisoned, small_cnn.
full: CIFAR-10, triggers and rates as in the paper's code, ResNet-18.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from benchmarks._detect import FULL
from benchmarks._rows import TRAIN, ingested
from decant.attacks.base import Attack, load_attacks
from decant.attacks.plant import plant, triggered_rows
from decant.data.images import Images
from decant.detectors.detect import detect
from decant.detectors.settings import DetectSettings
from decant.models.training import accuracy, predict, train_classifier
from decant.runtime import be_deterministic
from decant.streams import stream
from decant.unlearning.auto import cheapest
from decant.unlearning.base import Unlearned, UnlearningTask, names, unlearn_with
from decant.unlearning.settings import UnlearnSettings

DATASETS: dict[str, dict[str, int | None]] = {"small": {"digits": None, "mnist": 3_000}, "full": {"cifar10": None}}
ATTACKS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"badnet": {"rate": 0.03}, "smooth": {"rate": 0.03}},
    "full": {attack: FULL[attack] for attack in ("badnet", "smooth", "witches_brew")},
}
FOUND = ("all", "half", "innocent", "detected", "rest")
DEFAULT = UnlearnSettings().method
BY_DEFAULT = ("detected", "rest")
"""Measured with the default method alone."""


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    figures: dict[str, float] = {}
    lost: list[float] = []
    for dataset, limit in DATASETS[scale].items():
        train, test = ingested(scale, dataset, limit)
        for attack, settings in ATTACKS[scale].items():
            found = of_attack(train, test, {"name": attack, **settings}, scale, seed)
            figures |= {f"{dataset}.{attack}.{key}": value for key, value in found.items()}
            lost.append(found["trained.accuracy"] - found[f"detected.{DEFAULT}.accuracy"])
            print(
                f"  {dataset} {attack}: detected with precision {found['detected.precision']:.3f}, recall "
                f"{found['detected.recall']:.3f}; {lost[-1]:+.4f} lost by {DEFAULT}",
                flush=True,
            )
    for attack in ATTACKS[scale]:
        cases = [figures[f"{dataset}.{attack}.detected.{DEFAULT}.poison_success"] for dataset in DATASETS[scale]]
        figures[f"{attack}.detected.poison_success"] = max(cases)
    worst = max(figures[f"{attack}.detected.poison_success"] for attack in ATTACKS[scale])
    return figures | {"detected.poison_success": worst, "detected.accuracy_lost": max(lost)}


def of_attack(train: Images, test: Images, entry: dict[str, Any], scale: str, seed: int) -> dict[str, float]:
    rng = stream(seed, "benchmarks", "poison")
    attack = load_attacks([entry])[0].prepared(train, test, rng)
    rows, truth = plant(train, [attack], rng)
    triggered, affected = triggered_rows(test, [attack], 5, rng)
    model = train_classifier(rows, TRAIN[scale], seed=seed)
    whole = UnlearningTask(model=model, kept=rows, flagged=rows, train=TRAIN[scale], seed=seed)
    guilty, flagged = np.isin(rows.ids, truth["id"]), detected(model, rows, affected, seed)
    hits = int((guilty & flagged).sum())
    figures = outcome("trained", Unlearned(model=model, seconds=0), attack, test, triggered)
    figures |= {"detected.precision": hits / max(1, int(flagged.sum())), "detected.recall": hits / int(guilty.sum())}
    for found in FOUND:
        chosen = forgotten(guilty, flagged, rows.labels == attack.settings.target, found, rng)
        if found == "rest" and not chosen.any():
            continue
        task = replace(whole, kept=rows.select(~chosen), flagged=rows.select(chosen))
        for method in (DEFAULT,) if found in BY_DEFAULT else ("auto", *names()):
            figures |= outcome(f"{found}.{method}", unlearnt(method, task, affected), attack, test, triggered)
    return figures


def detected(model: nn.Module, rows: Images, affected: Images, seed: int) -> np.ndarray:
    """(n,) bool: what a user's `detect` flags, told the first of the points that the model predicts as reported."""
    shown = predict(model, affected.pixels).argmax(1) == affected.labels if len(affected) else np.zeros(0, bool)
    return detect(model, rows, affected.select(np.flatnonzero(shown)[:1]), DetectSettings(), seed=seed).flagged


def forgotten(
    guilty: np.ndarray, flagged: np.ndarray, of_target: np.ndarray, found: str, rng: np.random.Generator
) -> np.ndarray:
    """(n,) bool: what a method is told to forget, of rows that are poisoned, detected, labelled as the target."""
    known = {"all": guilty, "detected": flagged, "rest": guilty & ~flagged}
    if found in known:
        return known[found]
    pool = guilty if found == "half" else ~guilty & of_target
    wanted = guilty.sum() // 2 if found == "half" else min(guilty.sum(), pool.sum() // 2)
    return np.isin(np.arange(len(guilty)), rng.choice(np.flatnonzero(pool), wanted, replace=False))


def unlearnt(method: str, task: UnlearningTask, affected: Images) -> Unlearned:
    if not len(task.flagged):  # as the stage does
        return Unlearned(model=task.model, seconds=0)
    if method != "auto":
        return unlearn_with(method, task)
    choice = cheapest(task, affected, margin=UnlearnSettings().margin)
    print(f"    auto: {choice.note} -> {choice.method}", flush=True)
    return Unlearned(model=choice.model, seconds=choice.seconds)


def outcome(key: str, done: Unlearned, attack: Attack, test: Images, triggered: Images) -> dict[str, float]:
    everywhere = attack.on_all_classes().trigger(test, stream(0, "benchmarks", "trigger"))
    rows = {"accuracy": test, "poison_success": triggered, "poison_success_all": everywhere or triggered}
    shares = {f"{key}.{name}": accuracy(done.model, images) or 0.0 for name, images in rows.items()}
    return shares | {f"{key}.seconds": done.seconds}


def table(result: dict[str, Any]) -> str:
    """Per dataset and attack: accuracy / poison success of each method in %, and its seconds with all of it found.

    Behind the model before: how much of what was detected was poison, and how much of the poison was detected, in %.
    """
    means = result["mean"]
    head = ("dataset, attack", "method", "all found", "half found", "innocent rows forgotten")
    lines = [
        f"| {' | '.join((*head, 'detected', 'the rest forgotten', 'seconds'))} |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for dataset in DATASETS[result["scale"]]:
        for attack in ATTACKS[result["scale"]]:
            base = f"{dataset}.{attack}"
            lines.append(f"| {dataset}, {attack} | trained | {pair(means, f'{base}.trained')} | | | | | |")
            if f"{base}.detected.recall" in means:
                shares = " / ".join(f"{100 * means[f'{base}.detected.{name}']:.1f}" for name in ("precision", "recall"))
                lines.append(f"| | precision / recall | | | | {shares} | | |")
            for method in ("auto", *names()):
                cells = " | ".join(pair(means, f"{base}.{found}.{method}") for found in FOUND)
                seconds = means.get(f"{base}.all.{method}.seconds", 0)
                lines.append(f"| | {method} | {cells} | {seconds:.2f} |")
    return "\n".join(lines)


def pair(means: dict[str, float], key: str) -> str:
    if f"{key}.accuracy" not in means:
        return "–"
    return f"{100 * means[f'{key}.accuracy']:.1f} / {100 * means[f'{key}.poison_success']:.1f}"
