"""LabelTrust beside other label checks: every method on every poisoned dataset, all with as many confirmed rows.

`DATASET.POISONING.METHOD.auroc`, `.precision_at_80` (precision at a recall of 80 %), `.frr`, `.trr`, all counted on the
same third of the rows, of which no expert is shown any. METHOD: `plus`, `plus_classifier` (with `verify.classifier`)
and `paper` are LabelTrust after its last loop, at most 350 reviews in all; the others are the files of
decant.label_checks, which know the right labels of 35 random rows of every given label.
DATASET.POISONING, by every method: Fashion-MNIST (12,000 rows) and Intel's scenes (3,000 rows) with 9.4 % random
labels and with a trigger on 9.4 % of the rows, all to one class; CIFAR-10 (12,000 rows) with what people got wrong
(40 %).
By fewer methods, 12,000 rows each: pairs of classes that are confused (`pair`: 4 called 9 in MNIST, shirt called
T-shirt in Fashion-MNIST, 2 % of all rows); MNIST with 1, 30, 60 and 80 % random labels, with noise blended into 9.4 %
of the rows, all to one class, and with a backdoor whose labels are right (`clean_label`, a patch on 2 % of the rows:
here a bad row is one that carries it). `plus_pretrain` (2,000 steps of `verify.pretrain`) on Fashion-MNIST.
With a trigger also `.poison_success` of a small network trained on what LabelTrust keeps, and
`DATASET.POISONING.poison_before` of one trained on all rows.

`cifar10n.auroc_gain`, `.precision_gain`: `plus_classifier` less confident learning. `full` has every method for all
of these, and adds MNIST with 9.4 % random labels and with a patch on 9.4 % and on 1 % of the rows, the first two also
with a ResNet-18 for the rivals. `small` takes hours on two cores, with DECANT_JOBS=2, more than half of them for
Intel's larger pictures.
"""

from typing import Any

from benchmarks._cells import definition
from benchmarks._labels import LOOPS, after, cells

COMPARED = (
    ("fashion12k", "random"),
    ("intel", "random"),
    ("cifar10n", "human"),
    ("fashion12k", "trigger"),
    ("intel", "trigger"),
)
LEFT_OUT = {("intel", "trigger", "plus_classifier"), ("intel", "trigger", "asd")}  # of `small`: two hours of one core
FEWER = ("plus", "plus_classifier", "confident_learning", "datalab", "loss", "knn")
FEWEST = ("plus", "confident_learning", "loss", "knn")
OF_BACKDOORS = (*FEWEST, "activation_clustering", "spectral")
BY_FEWER = {
    ("mnist12k", "pair"): FEWER,
    ("fashion12k", "pair"): FEWER,
    ("mnist12k", "random1"): FEWEST,
    ("mnist12k", "random30"): FEWER,
    ("mnist12k", "random60"): FEWEST,
    ("mnist12k", "random80"): FEWEST,
    ("mnist12k", "blend"): OF_BACKDOORS,
    ("mnist12k", "clean_label"): OF_BACKDOORS,
}
ALSO_COMPARED = (  # in `full` alone
    ("mnist12k", "random"),
    ("mnist12k", "trigger"),
    ("mnist12k", "trigger1"),
    ("mnist12k_resnet18", "random"),
    ("mnist12k_resnet18", "trigger"),
)
PRETRAINED = ("fashion12k", "random", "plus_pretrain")
SHOWN = ("auroc", "precision_at_80", "frr", "trr")


def methods() -> list[str]:
    """Every method that is compared, in the order of the table."""
    return list(definition("label-methods")["matrix"]["method"])


def compared(scale: str) -> list[tuple[str, str, str]]:
    """Dataset, poisoning, method."""
    if scale == "full":
        return [(*case, method) for case in (*COMPARED, *BY_FEWER, *ALSO_COMPARED) for method in methods()]
    every = [(*case, method) for case in COMPARED for method in methods() if method != PRETRAINED[-1]]
    some = [(*case, method) for case, fewer in BY_FEWER.items() for method in fewer]
    return [cell for cell in every if cell not in LEFT_OUT] + some + [PRETRAINED]


def run(scale: str, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (name, poisoning, method, _), found in cells("label-methods", [(*c, seed) for c in compared(scale)]).items():
        figures |= {f"{name}.{poisoning}.{method}.{key}": after(found, LOOPS)[key] for key in SHOWN}
        if "poison_after" in found:
            figures[f"{name}.{poisoning}.{method}.poison_success"] = found["poison_after"]
            figures[f"{name}.{poisoning}.poison_before"] = found["poison_before"]
    ours, theirs = (f"cifar10n.human.{method}" for method in ("plus_classifier", "confident_learning"))
    return figures | {
        "cifar10n.auroc_gain": figures[f"{ours}.auroc"] - figures[f"{theirs}.auroc"],
        "cifar10n.precision_gain": figures[f"{ours}.precision_at_80"] - figures[f"{theirs}.precision_at_80"],
    }


def table(result: dict[str, Any]) -> str:
    """AUROC and FRR / TRR, where every method is compared and where fewer are; the best AUROC of a dataset in bold."""
    every = compared(result["scale"])
    parts = [[cell for cell in every if (cell[:2] in COMPARED) == of_all] for of_all in (True, False)]
    tables = "\n\n".join(table_of(result["mean"], part) for part in parts)
    return "AUROC (FRR / TRR in percent, by the method's own rule):\n\n" + tables


def table_of(mean: dict[str, float], cells_shown: list[tuple[str, str, str]]) -> str:
    columns = list(dict.fromkeys((name, poisoning) for name, poisoning, _ in cells_shown))
    lines = ["| method | " + " | ".join(map(", ".join, columns)) + " |", "|---|" + "--:|" * len(columns)]
    for method in dict.fromkeys(method for *_, method in cells_shown):
        lines.append(f"| {method} | " + " | ".join(figure_of(mean, column, method) for column in columns) + " |")
    return "\n".join(lines)


def figure_of(mean: dict[str, float], column: tuple[str, str], method: str) -> str:
    case = ".".join(column)
    if f"{case}.{method}.auroc" not in mean:
        return ""
    auroc, frr, trr = (mean[f"{case}.{method}.{key}"] for key in ("auroc", "frr", "trr"))
    best = max(mean[key] for name in methods() if (key := f"{case}.{name}.auroc") in mean)
    number = f"**{auroc:.3f}**" if auroc == best else f"{auroc:.3f}"
    return f"{number} ({100 * frr:.1f} / {100 * trr:.1f})"
