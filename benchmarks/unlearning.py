"""Unlearning methods side by side: outcome and seconds, with all of the poison found, with half of it, and with none.

`DATASET.ATTACK.FOUND.METHOD.FIGURE`, FOUND being what the method is told to forget:

    all      every poisoned row
    half     a random half of them; the other half stays among the kept rows
    others   as many innocent rows that carry the target's label: the complement test of the paper's Table 3. A method
             that ends the attack here too has not unlearnt the poison but broken the model

FIGURE: `accuracy` on clean test rows, `poison_success` on the victim class's triggered rows, `poison_success_all` on
every class's but the target's, `seconds`. METHOD: a file of decant/unlearning, `trained` (the model before), or `auto`
(which is told 5 affected points). `ATTACK.poison_success`, `poison_success` and `accuracy_lost` (since `trained`) are
those of the default method with all of the poison found, the worst of the cases.
The first table shows accuracy / poison success in %.
small: digits and 3,000 rows of MNIST, 3 % of the rows poisoned, small_cnn. full: CIFAR-10, 1 %, ResNet-18.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._rows import TRAIN, ingested
from decant.attacks import Attack, load_attacks
from decant.images import Images
from decant.runtime import be_deterministic
from decant.settings import UnlearnSettings
from decant.training import accuracy, train_classifier
from decant.unlearning import Task, Unlearned, names, unlearn_with
from decant.unlearning._auto import cheapest
from tasks.simulate import plant, triggered_rows

DATASETS: dict[str, dict[str, int | None]] = {"small": {"digits": None, "mnist": 3_000}, "full": {"cifar10": None}}
ATTACKS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"badnet": {"rate": 0.03}, "smooth": {"rate": 0.03}},
    "full": {
        "badnet": {"rate": 0.01},
        "smooth": {"rate": 0.01, "network": "resnet18"},
        "witches_brew": {"rate": 0.01, "network": "resnet18", "epochs": 40, "augment": "shift_flip"},
    },
}
FOUND = ("all", "half", "others")
DEFAULT = UnlearnSettings().method


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    figures: dict[str, float] = {}
    lost: list[float] = []
    for dataset, limit in DATASETS[scale].items():
        train, test = ingested(scale, dataset, limit)
        for attack, settings in ATTACKS[scale].items():
            found = of_attack(train, test, {"name": attack, **settings}, scale, seed)
            figures |= {f"{dataset}.{attack}.{key}": value for key, value in found.items()}
            lost.append(found["trained.accuracy"] - found[f"all.{DEFAULT}.accuracy"])
            print(f"  {dataset} {attack}: {lost[-1]:+.4f} lost by {DEFAULT}", flush=True)
    for attack in ATTACKS[scale]:
        cases = [figures[f"{dataset}.{attack}.all.{DEFAULT}.poison_success"] for dataset in DATASETS[scale]]
        figures[f"{attack}.poison_success"] = max(cases)
    worst = max(figures[f"{attack}.poison_success"] for attack in ATTACKS[scale])
    return figures | {"poison_success": worst, "accuracy_lost": max(lost)}


def of_attack(train: Images, test: Images, entry: dict[str, Any], scale: str, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 1])
    attack = load_attacks([entry])[0].prepared(train, test, rng)
    rows, truth = plant(train, [attack], rng)
    triggered, affected = triggered_rows(test, [attack], 5, rng)
    model = train_classifier(rows, TRAIN[scale], seed=seed)
    whole = Task(model=model, kept=rows, flagged=rows, train=TRAIN[scale], seed=seed)
    figures = outcome("trained", Unlearned(model=model, seconds=0), attack, test, triggered)
    for found in FOUND:
        chosen = forgotten(rows, truth["id"].to_numpy(), attack.settings.target, found, rng)
        task = replace(whole, kept=rows.select(~chosen), flagged=rows.select(chosen))
        for method in ("auto", *names()):
            figures |= outcome(f"{found}.{method}", unlearnt(method, task, affected), attack, test, triggered)
    return figures


def forgotten(rows: Images, poison: np.ndarray, target: int, found: str, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: what a method is told to forget; `poison` are the poisoned rows' ids."""
    guilty = np.isin(rows.ids, poison)
    if found == "all":
        return guilty
    pool = guilty if found == "half" else ~guilty & (rows.labels == target)
    wanted = len(poison) // 2 if found == "half" else min(len(poison), int(pool.sum()) // 2)
    return np.isin(np.arange(len(rows)), rng.choice(np.flatnonzero(pool), wanted, replace=False))


def unlearnt(method: str, task: Task, affected: Images) -> Unlearned:
    if method != "auto":
        return unlearn_with(method, task)
    choice = cheapest(task, affected, margin=UnlearnSettings().margin)
    print(f"    auto: {choice.note} -> {choice.method}", flush=True)
    return Unlearned(model=choice.model, seconds=choice.seconds)


def outcome(key: str, done: Unlearned, attack: Attack, test: Images, triggered: Images) -> dict[str, float]:
    everywhere = attack.on_all_classes().trigger(test, np.random.default_rng(0))
    rows = {"accuracy": test, "poison_success": triggered, "poison_success_all": everywhere or triggered}
    shares = {f"{key}.{name}": accuracy(done.model, images) or 0.0 for name, images in rows.items()}
    return shares | {f"{key}.seconds": done.seconds}


def table(result: dict[str, Any]) -> str:
    """Per dataset and attack: accuracy / poison success of each method in %, and its seconds with all of it found."""
    means = result["mean"]
    head = ("dataset, attack", "method", "all found", "half found", "others forgotten", "seconds")
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|--:|--:|--:|"]
    for dataset in DATASETS[result["scale"]]:
        for attack in ATTACKS[result["scale"]]:
            base = f"{dataset}.{attack}"
            lines.append(f"| {dataset}, {attack} | trained | {pair(means, f'{base}.trained')} | | | |")
            for method in ("auto", *names()):
                cells = " | ".join(pair(means, f"{base}.{found}.{method}") for found in FOUND)
                seconds = means.get(f"{base}.all.{method}.seconds", 0)
                lines.append(f"| | {method} | {cells} | {seconds:.2f} |")
    return "\n".join(lines)


def pair(means: dict[str, float], key: str) -> str:
    if f"{key}.accuracy" not in means:
        return "–"
    return f"{100 * means[f'{key}.accuracy']:.1f} / {100 * means[f'{key}.poison_success']:.1f}"
