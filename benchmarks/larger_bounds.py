"""Noise twice as strong: D-VAE's Table 5, at any scale.

`ATTACK.METHOD`: clean test accuracy as in `unlearnable`, at twice its bounds; `METHOD.mean_accuracy` over the
attacks. (The paper's l2 bound is 4.0, four times that of its Table 2; the l-infinity ones are 16/255.)
"""

from statistics import mean
from typing import Any

from benchmarks._unlearnable import cells, matrix

PAPER = {  # Table 5, CIFAR-10, ResNet-18, percent: purification method to its mean over five attacks
    "none": 15.85, "adversarial": 73.19, "ueraser": 53.77, "lfu": 59.81, "dvae": 87.63,
}  # fmt: skip


def run(scale: str, seed: int) -> dict[str, float]:
    axes = matrix(f"{scale}-bounds")
    found = cells(scale, f"{scale}-bounds", seed=[seed])
    figures = {f"{cell['attack']}.{cell['countermeasure']}": accuracy for cell, accuracy in found}
    return figures | {
        f"{name}.mean_accuracy": mean(figures[f"{attack}.{name}"] for attack in axes["attack"])
        for name in axes["countermeasure"]
    }


def table(result: dict[str, Any]) -> str:
    """Attacks by purification methods in percent; at full scale the paper's means beside ours."""
    axes = matrix(f"{result['scale']}-bounds")
    return by_method(result, axes["attack"], axes["countermeasure"], PAPER)


def by_method(result: dict[str, Any], rows: list[str], names: list[str], paper: dict[str, float]) -> str:
    """Markdown of the figures ROW.METHOD in percent, and their means, at full scale beside the paper's."""
    lines = ["| attack | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for row in rows:
        keys = [f"{row}.{name}" for name in names]
        shown = [f"{100 * result['mean'][key]:.1f} ± {100 * result['std'][key]:.1f}" for key in keys]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    means = [f"{100 * result['mean'][f'{name}.mean_accuracy']:.1f}" for name in names]
    if result["scale"] == "full":
        means = [
            f"{ours} (paper {paper[name]:.1f})" if name in paper else ours
            for name, ours in zip(names, means, strict=True)
        ]
    return "\n".join([*lines, "| mean | " + " | ".join(means) + " |"])
