"""How many affected points the default detector needs, and how often one is found where the user knows of none.

The cells are those of `detectors` (benchmarks/_detect.py). Means over datasets, and over the attacks that worked:

    points1.*, points3.*, points5.*       precision, recall, average precision from so many known points
    candidates.alone.*                    `decant suspects`: five triggered images among 200 clean test images; how
                                          often the first is a true one, and how often one of the first five
    candidates.with_trust.*               the same with LabelTrust's scorer, which knows ten references of every class
    ATTACK.*                              each attack by itself
"""

from typing import Any

from benchmarks._detect import POINTS, cells
from benchmarks.detectors import averaged

SHOWN = (
    *(f"points{count}.{key}" for count in POINTS for key in ("precision", "recall", "average_precision")),
    *(f"candidates.{name}.{key}" for name in ("alone", "with_trust") for key in ("top1", "top5", "average_precision")),
)


def run(scale: str, seed: int) -> dict[str, float]:
    found = cells(scale, seed)
    known = sorted({attack for _, attack in found} - {"clean"})
    figures = {key: value for key, value in averaged(found, known).items() if key in SHOWN}
    for attack in known:
        figures |= {f"{attack}.{key}": value for key, value in averaged(found, [attack]).items() if key in SHOWN}
    return figures


def table(result: dict[str, Any]) -> str:
    """Attacks by what was found, in percent."""
    values = result["mean"]
    attacks = dict.fromkeys(key.split(".")[0] for key in values if key.count(".") == (2 if "points" in key else 3))
    heads = [
        "P / R, 1 point",
        "3 points",
        "5 points",
        "first candidate true",
        "one of five",
        "first, with trust",
        "five",
    ]
    lines = ["| attack | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for attack in attacks:
        pairs = [
            " / ".join(f"{100 * values[f'{attack}.points{count}.{key}']:.0f}" for key in ("precision", "recall"))
            for count in POINTS
        ]
        tops = [
            f"{100 * values[f'{attack}.candidates.{name}.{top}']:.0f}"
            for name in ("alone", "with_trust")
            for top in ("top1", "top5")
        ]
        lines.append(f"| {attack} | " + " | ".join([*pairs, *tops]) + " |")
    return "\n".join(lines)
