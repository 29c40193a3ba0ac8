"""Cleaning a dataset of its wrong labels: LabelTrust's refeed loop beside the paper's table.

`mnist.POISONING.x10.*`, `.loopN.*`: LabelTrust on all 60,000 rows of MNIST, of which 9.4 % carry a wrong label, before
the refeed loop and after each of five loops of 50 reviews: `frr` (right labels refused), `trr` (wrong labels refused),
`precision` of what is refused, `auroc`, `reviews`, `noise_rate` (estimated); counted on rows that nobody reviewed.
`plus` has `far=0.001` and two self-training passes, `paper` 0.5 and 1,000 steps (benchmarks/_labels.py).
Where many labels are wrong the budget of 350 reviews may end before the loops; the last one stands for the rest.
POISONING: `random` labels and `trigger` (BadNet, all to one); at full scale also `confusable` (every class becomes the
next) and 30, 60 and 80 % random labels. `paper.*`: the same in paper mode (mean sigmoid, threshold 0.5).
`mnist.seconds`: five loops, mean of `random` and `trigger`. `poison_success`, `poison_before`: of a small network
trained on what is kept, and on all rows.
"""

from statistics import mean
from typing import Any

from benchmarks._labels import LOOPS, after, cells

ON_MNIST = {
    "small": ("random", "trigger"),
    "full": ("random", "trigger", "confusable", "random30", "random60", "random80"),
}
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
            figures |= {f"{name}.{key}": after(found, loop)[key] for key in SHOWN}
        figures[f"{prefix}.{poisoning}.seconds"] = after(found, LOOPS)["seconds"]
        if "poison_after" in found:
            figures[f"{prefix}.{poisoning}.poison_success"] = found["poison_after"]
            figures[f"{prefix}.{poisoning}.poison_before"] = found["poison_before"]
    figures["mnist.seconds"] = mean(figures[f"mnist.{poisoning}.seconds"] for poisoning in ("random", "trigger"))
    return figures


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
