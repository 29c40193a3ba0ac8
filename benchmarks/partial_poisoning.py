"""Noise on 20 to 80 % of the rows: D-VAE's Table 9, at any scale. Every row is purified, as in the paper.

`ATTACK_rPERCENT.COUNTERMEASURE`: clean test accuracy as in `unlearnable`; `COUNTERMEASURE.mean_accuracy` over all.
"""

from typing import Any

from benchmarks import larger_bounds

PAPER = {"jpeg": 84.93, "dvae": 92.01}  # mean of the 28 values of Table 9, percent


def run(scale: str, seed: int) -> dict[str, float]:
    return larger_bounds.run(scale, seed, table_name="partial")


def table(result: dict[str, Any]) -> str:
    return larger_bounds.table(result, table_name="partial", paper=PAPER)
