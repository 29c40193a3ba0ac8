"""Noise on 20 to 80 % of the rows: D-VAE's Table 9, at any scale. Every row is purified, as in the paper.

`ATTACK.PERCENT.METHOD`: clean test accuracy as in `unlearnable`; `METHOD.mean_accuracy` over all.
"""

from statistics import mean
from typing import Any

from benchmarks._unlearnable import cells, matrix
from benchmarks.larger_bounds import by_method

PAPER = {"jpeg": 84.93, "dvae": 92.01}  # mean of the 28 values of Table 9, percent


def run(scale: str, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    found = cells(scale, f"{scale}-partial", seed=[seed])
    for cell, accuracy in found:
        figures[f"{cell['attack']}.{cell['percent']}.{cell['countermeasure']}"] = accuracy
    for name in matrix(f"{scale}-partial")["countermeasure"]:
        figures[f"{name}.mean_accuracy"] = mean(value for cell, value in found if cell["countermeasure"] == name)
    return figures


def table(result: dict[str, Any]) -> str:
    """Attacks and percent of the rows by purification methods; at full scale the paper's means beside ours."""
    axes = matrix(f"{result['scale']}-partial")
    rows = [f"{attack}.{percent}" for attack in axes["attack"] for percent in axes["percent"]]
    return by_method(result, rows, axes["countermeasure"], PAPER)
