"""Cleaning a dataset of its wrong labels: LabelTrust's refeed loop, row by row of the paper's table.

`mnist.POISONING.x10.*`, `.loopN.*`: LabelTrust on all 60,000 rows of MNIST, of which 9.4 % carry a wrong label, before
the refeed loop and after each of five loops of 50 reviews: `frr` (right labels refused), `trr` (wrong labels refused),
`precision` of what is refused, `auroc`, `reviews`, `noise_rate` (estimated); counted on rows that nobody reviewed.
POISONING: `random` labels and `trigger` (BadNet, all to one); at full scale also `confusable` (every class becomes the
next) and 30, 60 and 80 % random labels. `paper.*`: the same in paper mode (mean sigmoid, threshold 0.5).
`mnist.seconds`: five loops, mean of `random` and `trigger`. `poison_success`, `poison_before`: of a small network
trained on what is kept, and on all rows.

With DECANT_METHODS=all (hours on a CPU) also `DATASET.POISONING.METHOD.auroc|precision_at_80|frr|trr`: LabelTrust after
five loops beside every label check (decant.label_checks), which know as many confirmed rows. 12,000 rows of MNIST and
Fashion-MNIST, Intel's scenes, CIFAR-10 under human labels (40 % wrong). `cifar10n.auroc_gain`, `.precision_gain`:
LabelTrust with `verify.classifier`, as is advised for photographs, less confident learning; precision at a recall of
80 %.
"""

import os
from statistics import mean
from typing import Any

from benchmarks._cells import definition
from benchmarks._labels import LOOPS, cells

ON_MNIST = {
    "small": ("random", "trigger"),
    "full": ("random", "trigger", "confusable", "random30", "random60", "random80"),
}
COMPARED = (
    ("mnist12k", "random"),
    ("mnist12k", "trigger"),
    ("mnist12k", "random60"),
    ("fashion12k", "random"),
    ("fashion12k", "trigger"),
    ("intel", "random"),
    ("cifar10n", "human"),
)
PHOTOGRAPHS = ("intel", "cifar10n")
SHOWN = ("frr", "trr", "precision", "auroc", "reviews", "noise_rate")
PAPER = {"x10": (30.65, 99.87), "loop1": (24.26, 99.69), "loop2": (13.26, 99.34), "loop3": (13.56, 99.39),
         "loop4": (13.54, 99.71), "loop5": (8.03, 99.82)}  # fmt: skip
"""FRR and TRR of the paper's dataset-cleaning table, percent."""


def run(scale: str, seed: int) -> dict[str, float]:
    poisonings = ON_MNIST[scale]
    wanted = [("mnist", poisoning, "plus", seed) for poisoning in poisonings]
    wanted += [("mnist", poisoning, "paper", seed) for poisoning in ("random", "trigger")]
    figures: dict[str, float] = {}
    for (_, poisoning, method, _), found in cells("label-loops", wanted).items():
        prefix = "mnist" if method == "plus" else "paper"
        for loop in range(LOOPS + 1):
            name = f"{prefix}.{poisoning}.{'x10' if loop == 0 else f'loop{loop}'}"
            figures |= {f"{name}.{key}": found[f"loop{loop}.{key}"] for key in SHOWN}
        figures[f"{prefix}.{poisoning}.seconds"] = found[f"loop{LOOPS}.seconds"]
        if "poison_after" in found:
            figures[f"{prefix}.{poisoning}.poison_success"] = found["poison_after"]
            figures[f"{prefix}.{poisoning}.poison_before"] = found["poison_before"]
    figures["mnist.seconds"] = mean(figures[f"mnist.{poisoning}.seconds"] for poisoning in ("random", "trigger"))
    return figures | (methods(seed) if os.environ.get("DECANT_METHODS") == "all" else {})


def methods(seed: int) -> dict[str, float]:
    names = definition()["stages"]["label-methods"]["matrix"]["method"]
    wanted = [(name, poisoning, method, seed) for name, poisoning in COMPARED for method in names]
    wanted = [cell for cell in wanted if cell[2] != "plus_classifier" or cell[0] in PHOTOGRAPHS]
    figures: dict[str, float] = {}
    for (name, poisoning, method, _), found in cells("label-methods", wanted).items():
        prefix = f"loop{LOOPS}." if f"loop{LOOPS}.frr" in found else ""
        for key in ("auroc", "precision_at_80", "frr", "trr"):
            figures[f"{name}.{poisoning}.{method}.{key}"] = found[prefix + key]
    ours, theirs = (f"cifar10n.human.{method}" for method in ("plus_classifier", "confident_learning"))
    return figures | {
        "cifar10n.auroc_gain": figures[f"{ours}.auroc"] - figures[f"{theirs}.auroc"],
        "cifar10n.precision_gain": figures[f"{ours}.precision_at_80"] - figures[f"{theirs}.precision_at_80"],
    }


def table(result: dict[str, Any]) -> str:
    """FRR / TRR in percent, mean ± standard deviation, beside the paper's."""
    columns = [(mode, poisoning) for mode in ("mnist", "paper") for poisoning in ("random", "trigger")]
    names = {"mnist": "plus", "paper": "paper mode"}
    heads = [f"{names[mode]}, {poisoning}" for mode, poisoning in columns]
    lines = ["| reviews per class | paper | " + " | ".join(heads) + " |", "|--:|--:|" + "--:|" * len(heads)]
    for loop, (row, (frr, trr)) in enumerate(PAPER.items()):
        cells_ = [f"{mode}.{kind}.{row}" for mode, kind in columns]
        shown = [f"{percent(result, f'{cell}.frr')} / {percent(result, f'{cell}.trr')}" for cell in cells_]
        lines.append(f"| {10 + 5 * loop} | {frr} / {trr} | " + " | ".join(shown) + " |")
    return "FRR / TRR in percent:\n\n" + "\n".join(lines)


def percent(result: dict[str, Any], key: str) -> str:
    mean_, spread = 100 * result["mean"][key], 100 * result["std"][key]
    return f"{mean_:.2f} ± {spread:.2f}" if result["n"] > 1 else f"{mean_:.2f}"
