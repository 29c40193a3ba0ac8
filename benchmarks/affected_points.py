"""Affected points: how many the default detector needs, and how often `decant suspects` finds one.

The cells are those of `detectors` (benchmarks/_detect.py). Means over datasets, and over the attacks that worked:

    points1.*, points3.*, points5.*       precision, recall, average precision from so many known points
    candidates.alone.*                    `decant suspects`: five triggered images among 200 clean test images; how
                                          often the first is a true one, and how often one of the first five
    candidates.with_trust.*               the same with LabelTrust's scorer, which knows ten references of every class
    POISONING.*                           each poisoning by itself
"""

from typing import Any

from benchmarks._detect import POINTS, POISONINGS, Cells, averaged, cells

FROM_POINTS = ("precision", "recall", "average_precision")
RANKED = ("alone", "with_trust")


def run(scale: str, seed: int) -> dict[str, float]:
    found = cells(scale, seed)
    known = sorted({poisoning for _, poisoning in found if POISONINGS[poisoning].attack is not None})
    figures = figures_of(found, known)
    for poisoning in known:
        figures |= {f"{poisoning}.{key}": value for key, value in figures_of(found, [poisoning]).items()}
    return figures


def figures_of(found: Cells, over: list[str]) -> dict[str, float]:
    """Means over the cells of those poisonings."""
    figures: dict[str, float] = {}
    for count in POINTS:
        each = averaged(found, over, "points", str(count))
        figures |= {f"points{count}.{key}": each[key] for key in FROM_POINTS if key in each}
    for name in RANKED:
        each = averaged(found, over, "candidates", name)
        figures |= {f"candidates.{name}.{key}": value for key, value in each.items()}
    return figures


def table(result: dict[str, Any]) -> str:
    """Poisonings by what was found, in percent."""
    values = result["mean"]
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
    for poisoning in sorted(name for name in POISONINGS if f"{name}.points1.recall" in values):
        pairs = [
            " / ".join(f"{100 * values[f'{poisoning}.points{count}.{key}']:.0f}" for key in ("precision", "recall"))
            for count in POINTS
        ]
        tops = [
            f"{100 * values[f'{poisoning}.candidates.{name}.{top}']:.0f}" for name in RANKED for top in ("top1", "top5")
        ]
        lines.append(f"| {poisoning} | " + " | ".join([*pairs, *tops]) + " |")
    return "\n".join(lines)
