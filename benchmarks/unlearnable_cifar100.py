"""Unlearnable examples of a hundred classes against purification methods: D-VAE's Table 3.

Keys as in `unlearnable`: CIFAR-100, the paper's bounds, ResNet-18, 60 epochs. At full scale only: a network that takes
minutes on a CPU learns too little of a hundred classes for anything to be lost.
"""

from typing import Any

from benchmarks import unlearnable
from decant.errors import StageError

COLUMNS = ("none", "adversarial", "ueraser", "iss", "lfu", "dvae")
PAPER: unlearnable.Paper = {  # Table 3, percent
    attack: dict(zip(COLUMNS, values, strict=True))
    for attack, values in {
        "clean": (77.61, 59.65, 69.09, 71.59, 33.12, 70.72),
        "em": (12.30, 59.07, 42.89, 61.91, 29.54, 68.79),
        "tap": (13.44, 57.91, 35.10, 57.33, 29.90, 65.54),
        "rem": (16.80, 59.34, 50.12, 58.13, 31.06, 68.52),
        "sep": (4.66, 57.93, 27.77, 57.76, 32.03, 64.02),
        "lsp": (2.91, 58.93, 53.28, 53.06, 34.61, 67.73),
        "ar": (2.71, 58.77, 26.77, 56.60, 30.09, 63.73),
        "ops": (12.56, 7.28, 36.78, 54.45, 30.40, 65.10),
    }.items()
}


def run(scale: str, seed: int) -> dict[str, float]:
    if scale != "full":
        raise StageError("unlearnable-cifar100: --scale full expected; `unlearnable` has a small scale")
    return unlearnable.run("full100", seed)


def table(result: dict[str, Any]) -> str:
    return unlearnable.table(result, "full100", PAPER)
