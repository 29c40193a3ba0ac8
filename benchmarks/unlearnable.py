"""Unlearnable examples against purification methods: D-VAE's Table 2, at any scale (Table 3: `unlearnable-cifar100`).

`ATTACK.METHOD`: clean test accuracy of a network trained on rows of which all carry that attack's noise.
`ATTACK.drop`: what the attack costs without a purification method. `dvae.mean_accuracy` and `dvae.mean_gap`: mean over
the attacks, and how far that is below the network trained on clean rows.
small: 2,874 digits of 16 x 16, at bounds that hurt there (benchmarks/_rows.py), small_cnn, 10 epochs. full: CIFAR-10,
the paper's bounds, 60 epochs, ResNet-18 (with DECANT_NETWORKS=all also ResNet-50, DenseNet-121 and MobileNet-v2).
Cells: benchmarks/dvc.yaml, cached by DVC.
"""

import os
from statistics import mean
from typing import Any

from benchmarks._unlearnable import cells, matrix

Paper = dict[str, dict[str, float]]
PAPER: Paper = {  # Table 2, CIFAR-10, ResNet-18, percent
    "clean": {"none": 94.57, "adversarial": 85.17, "ueraser": 92.27, "bdr": 88.95, "gray": 92.74, "jpeg": 85.47},
    "em": {"none": 12.26, "adversarial": 84.43, "ueraser": 67.11, "bdr": 81.91, "gray": 19.50, "jpeg": 85.61},
    "tap": {"none": 25.44, "adversarial": 83.89, "ueraser": 55.84, "bdr": 80.18, "gray": 21.50, "jpeg": 84.99},
    "rem": {"none": 22.43, "adversarial": 86.01, "ueraser": 64.99, "bdr": 32.36, "gray": 62.35, "jpeg": 84.40},
    "sep": {"none": 6.63, "adversarial": 83.48, "ueraser": 61.07, "bdr": 81.21, "gray": 8.47, "jpeg": 84.97},
    "lsp": {"none": 13.14, "adversarial": 84.56, "ueraser": 80.39, "bdr": 40.25, "gray": 73.63, "jpeg": 79.91},
    "ar": {"none": 12.50, "adversarial": 82.01, "ueraser": 49.14, "bdr": 29.14, "gray": 36.18, "jpeg": 84.97},
    "ops": {"none": 22.03, "adversarial": 9.48, "ueraser": 64.02, "bdr": 19.58, "gray": 19.43, "jpeg": 77.33},
}
for attack, lfu, ours in (
    ("clean", 86.78, 93.29), ("em", 65.17, 91.42), ("tap", 53.46, 90.48), ("rem", 33.81, 86.38), ("sep", 74.14, 90.74),
    ("lsp", 87.76, 91.20), ("ar", 23.51, 91.77), ("ops", 86.46, 88.95),
):  # fmt: skip
    PAPER[attack] |= {"lfu": lfu, "dvae": ours}


def run(scale: str, seed: int) -> dict[str, float]:
    axes = matrix(scale)
    networks = axes["network"] if os.environ.get("DECANT_NETWORKS") == "all" else axes["network"][:1]
    figures: dict[str, float] = {}
    for cell, accuracy in cells(scale, scale, seed=[seed], network=networks):
        prefix = "" if cell["network"] == networks[0] else f"{cell['network']}."
        figures[f"{prefix}{cell['attack']}.{cell['countermeasure']}"] = accuracy
    attacks = [attack for attack in axes["attack"] if attack != "clean"]
    figures |= {f"{attack}.drop": figures["clean.none"] - figures[f"{attack}.none"] for attack in attacks}
    for method in axes["countermeasure"]:
        average = mean(figures[f"{attack}.{method}"] for attack in attacks)
        figures[f"{method}.mean_accuracy"] = average
        figures[f"{method}.mean_gap"] = figures["clean.none"] - average
    return figures


def table(result: dict[str, Any], name: str | None = None, paper: Paper = PAPER) -> str:
    """Attacks by purification methods, mean ± standard deviation in percent; at full scale beside the paper's.

    name: of the cells' matrix, where it is not the scale's.
    """
    axes, paper = matrix(name or result["scale"]), paper if result["scale"] == "full" else {}
    lines = ["| attack | " + " | ".join(axes["countermeasure"]) + " |", "|---|" + "--:|" * len(axes["countermeasure"])]
    for attack in axes["attack"]:
        shown = [
            beside_paper(result, f"{attack}.{method}", paper.get(attack, {}).get(method))
            for method in axes["countermeasure"]
        ]
        lines.append(f"| {attack} | " + " | ".join(shown) + " |")
    means = [f"{100 * result['mean'][f'{found}.mean_accuracy']:.1f}" for found in axes["countermeasure"]]
    return "\n".join([*lines, "| mean of the attacks | " + " | ".join(means) + " |"])


def beside_paper(result: dict[str, Any], key: str, paper: float | None) -> str:
    ours, spread = 100 * result["mean"][key], 100 * result["std"][key]
    return f"{ours:.1f} ± {spread:.1f}" + (f" (paper {paper:.1f}, {ours - paper:+.1f})" if paper else "")
