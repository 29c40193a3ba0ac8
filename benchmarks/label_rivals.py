"""LabelTrust beside other label checks: every method on every poisoned dataset, all with as many confirmed rows.

`DATASET.POISONING.METHOD.auroc`, `.precision_at_80` (precision at a recall of 80 %), `.frr`, `.trr`, all counted on the
same third of the rows, of which no expert is shown any. METHOD: `plus`, `plus_classifier` (with `verify.classifier`)
and `paper` are LabelTrust after its last loop, at most 350 reviews in all; the others are the files of
decant.label_checks, which know the right labels of 35 random rows of every given label.
DATASET.POISONING: Fashion-MNIST (12,000 rows) with 9.4 % random labels, CIFAR-10 (12,000 rows) with what people got
wrong (40 %). `cifar10n.auroc_gain`, `.precision_gain`: `plus_classifier` less confident learning. `full` adds Intel's
scenes (3,000 rows, an hour and a half on two cores) with random labels, MNIST with 1, 9.4, 60 and 80 % random labels,
pairs of classes that people confuse (4 called 9, shirt called T-shirt: 2 % of all rows), triggers (a patch on 9.4 % and
on 1 % of the rows, a blend; all to one), a backdoor whose labels are right (`clean_label`: here a bad row is one that
carries it), and the rivals with a ResNet-18.
"""

from typing import Any

from benchmarks._cells import definition
from benchmarks._labels import cells, in_the_end

COMPARED = (("fashion12k", "random"), ("cifar10n", "human"))
ALSO_COMPARED = (
    ("intel", "random"),
    ("mnist12k", "random"),
    ("mnist12k", "random1"),
    ("mnist12k", "random60"),
    ("mnist12k", "random80"),
    ("mnist12k", "trigger"),
    ("mnist12k", "trigger1"),
    ("mnist12k", "blend"),
    ("mnist12k", "clean_label"),
    ("mnist12k", "pair"),
    ("fashion12k", "pair"),
    ("fashion12k", "trigger"),
    ("mnist12k_resnet18", "random"),
    ("mnist12k_resnet18", "trigger"),
)
SHOWN = ("auroc", "precision_at_80", "frr", "trr")
BY_SCALE = {"small": COMPARED, "full": COMPARED + ALSO_COMPARED}


def methods() -> list[str]:
    return list(definition()["stages"]["label-methods"]["matrix"]["method"])


def run(scale: str, seed: int) -> dict[str, float]:
    wanted = [(name, poisoning, method, seed) for name, poisoning in BY_SCALE[scale] for method in methods()]
    figures: dict[str, float] = {}
    for (name, poisoning, method, _), found in cells("label-methods", wanted).items():
        figures |= {f"{name}.{poisoning}.{method}.{key}": found[in_the_end(found) + key] for key in SHOWN}
    ours, theirs = (f"cifar10n.human.{method}" for method in ("plus_classifier", "confident_learning"))
    return figures | {
        "cifar10n.auroc_gain": figures[f"{ours}.auroc"] - figures[f"{theirs}.auroc"],
        "cifar10n.precision_gain": figures[f"{ours}.precision_at_80"] - figures[f"{theirs}.precision_at_80"],
    }


def table(result: dict[str, Any]) -> str:
    """AUROC and FRR / TRR of every method; the best AUROC of a dataset in bold."""
    mean = result["mean"]
    columns = [column for column in BY_SCALE[result["scale"]] if f"{'.'.join(column)}.plus.auroc" in mean]
    best = {column: max(mean[f"{'.'.join(column)}.{method}.auroc"] for method in methods()) for column in columns}
    lines = ["| method | " + " | ".join(map(", ".join, columns)) + " |", "|---|" + "--:|" * len(columns)]
    for method in methods():
        shown = []
        for column in columns:
            key = f"{'.'.join(column)}.{method}"
            auroc = mean[f"{key}.auroc"]
            number = f"**{auroc:.3f}**" if auroc == best[column] else f"{auroc:.3f}"
            shown.append(f"{number} ({100 * mean[f'{key}.frr']:.1f} / {100 * mean[f'{key}.trr']:.1f})")
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "AUROC (FRR / TRR in percent, by the method's own rule):\n\n" + "\n".join(lines)
