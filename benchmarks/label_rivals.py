"""LabelTrust beside other label checks: every method on every poisoned dataset, all with as many confirmed rows.

`DATASET.POISONING.METHOD.auroc`, `.precision_at_80` (precision at a recall of 80 %), `.frr`, `.trr`, all counted on the
same third of the rows, of which no expert is shown any. METHOD: `plus`, `plus_classifier` (with `verify.classifier`)
and `paper` are LabelTrust after its last loop, at most 350 reviews in all; the others are the files of
decant.label_checks, which know the right labels of 35 random rows of every given label.
DATASET.POISONING: Fashion-MNIST (12,000 rows) and Intel's scenes (3,000 rows) with 9.4 % random labels and with a
trigger on 9.4 % of the rows, all to one class; CIFAR-10 (12,000 rows) with what people got wrong (40 %). By fewer
methods, those that people use: pairs of classes that are confused (`pair`: 4 called 9 in MNIST, shirt called T-shirt in
Fashion-MNIST, 2 % of all rows) and MNIST with 30, 60 and 80 % random labels; 12,000 rows each.
With a trigger also `.poison_success` of a small network trained on what LabelTrust keeps, and
`DATASET.POISONING.poison_before` of one trained on all rows.

`cifar10n.auroc_gain`, `.precision_gain`: `plus_classifier` less confident learning. `full` has every method for all of
these, and adds `plus_pretrain` (2,000 steps of `verify.pretrain`), MNIST with 1 and 9.4 % random labels, triggers in
MNIST (a patch on 9.4 % and on 1 % of the rows, a blend; all to one), a backdoor whose labels are right (`clean_label`:
here a bad row is one that carries it), and the rivals with a ResNet-18. `small` takes hours on two cores, with
DECANT_JOBS=2, more than half of them for Intel's larger pictures.
"""

from typing import Any

from benchmarks._cells import definition
from benchmarks._labels import cells, in_the_end

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
BY_FEWER = {
    ("mnist12k", "pair"): FEWER,
    ("fashion12k", "pair"): FEWER,
    ("mnist12k", "random30"): FEWER,
    ("mnist12k", "random60"): FEWEST,
    ("mnist12k", "random80"): FEWEST,
}
ALSO_COMPARED = (
    ("mnist12k", "random"),
    ("mnist12k", "random1"),
    ("mnist12k", "trigger"),
    ("mnist12k", "trigger1"),
    ("mnist12k", "blend"),
    ("mnist12k", "clean_label"),
    ("mnist12k_resnet18", "random"),
    ("mnist12k_resnet18", "trigger"),
)
VARIANTS = ("plus_pretrain",)  # in `full` alone
SHOWN = ("auroc", "precision_at_80", "frr", "trr")


def methods() -> list[str]:
    return list(definition()["stages"]["label-methods"]["matrix"]["method"])


def compared(scale: str) -> list[tuple[str, str, str]]:
    """Dataset, poisoning, method."""
    if scale == "full":
        return [(*case, method) for case in (*COMPARED, *BY_FEWER, *ALSO_COMPARED) for method in methods()]
    every = [(*case, method) for case in COMPARED for method in methods() if method not in VARIANTS]
    some = [(*case, method) for case, fewer in BY_FEWER.items() for method in fewer]
    return [cell for cell in every if cell not in LEFT_OUT] + some


def run(scale: str, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (name, poisoning, method, _), found in cells("label-methods", [(*c, seed) for c in compared(scale)]).items():
        figures |= {f"{name}.{poisoning}.{method}.{key}": found[in_the_end(found) + key] for key in SHOWN}
        if "poison_after" in found:
            figures[f"{name}.{poisoning}.{method}.poison_success"] = found["poison_after"]
            figures[f"{name}.{poisoning}.poison_before"] = found["poison_before"]
    ours, theirs = (f"cifar10n.human.{method}" for method in ("plus_classifier", "confident_learning"))
    return figures | {
        "cifar10n.auroc_gain": figures[f"{ours}.auroc"] - figures[f"{theirs}.auroc"],
        "cifar10n.precision_gain": figures[f"{ours}.precision_at_80"] - figures[f"{theirs}.precision_at_80"],
    }


def table(result: dict[str, Any]) -> str:
    """AUROC and FRR / TRR of every method; the best AUROC of a dataset in bold."""
    mean, every = result["mean"], compared(result["scale"])
    columns = list(dict.fromkeys((name, poisoning) for name, poisoning, _ in every))
    lines = ["| method | " + " | ".join(map(", ".join, columns)) + " |", "|---|" + "--:|" * len(columns)]
    for method in dict.fromkeys(method for *_, method in every):
        lines.append(f"| {method} | " + " | ".join(figure_of(mean, column, method) for column in columns) + " |")
    return "AUROC (FRR / TRR in percent, by the method's own rule):\n\n" + "\n".join(lines)


def figure_of(mean: dict[str, float], column: tuple[str, str], method: str) -> str:
    case = ".".join(column)
    if f"{case}.{method}.auroc" not in mean:
        return ""
    auroc, frr, trr = (mean[f"{case}.{method}.{key}"] for key in ("auroc", "frr", "trr"))
    best = max(value for key, value in mean.items() if key.startswith(f"{case}.") and key.endswith(".auroc"))
    number = f"**{auroc:.3f}**" if auroc == best else f"{auroc:.3f}"
    return f"{number} ({100 * frr:.1f} / {100 * trr:.1f})"
