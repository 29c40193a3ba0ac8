"""How well the detectors find planted poison from one affected point, and what they make of innocent points.

Digits, and 2,000 rows each of MNIST and Fashion-MNIST with a small network (`full`: CIFAR-10, ResNet-18); every attack
of benchmarks/_detect.py, also with 2 % wrong labels. Means over datasets and, in the named figures, over both:

    ATTACK.DETECTOR.*        precision (0 where nothing is flagged), recall, average precision, rows flagged; only rows
                             with the predicted label. Of joint and renormalised also the false alarms that they expect
    ATTACK.DETECTOR.any.*    the same without the same-label switch
    badnet.*, smooth.*       of the default detector, which the bars speak of: one class to one and all to one
    delta.*                  of the paper's own run (50 copies, no damping, no filter), over the dirty-label attacks
    clean.flagged_share      innocent rows that the default flags, of all, for natural mistakes of a model of clean data
    clean.right              the same for points that are predicted rightly
    poisoned.mistakes        the same for natural mistakes in the class that is under attack
    poisoned.right           the worst case: rightly predicted points of that class, reported by mistake
"""

from statistics import mean
from typing import Any

from benchmarks._detect import ATTACKS, cells
from decant.detectors.settings import DetectSettings

DIRTY = ("badnet", "badnet_all", "smooth")
COMPARED = ("precision", "recall", "average_precision", "flagged", "said_false_alarms", "seconds")


def run(scale: str, seed: int) -> dict[str, float]:
    found = cells(scale, seed)
    known = {attack for _, attack in found}
    figures: dict[str, float] = {}
    for attack in sorted(known - {"clean"}):
        figures |= {f"{attack}.{key}": value for key, value in averaged(found, [attack]).items() if wanted(key)}
    default = DetectSettings().detector
    for name in ("badnet", "smooth"):
        over = [attack for attack in known if attack.startswith(name)]
        figures |= {f"{name}.{key}": averaged(found, over).get(f"{default}.{key}", 0.0) for key in COMPARED if over}
    dirty = averaged(found, [attack for attack in known if attack.removesuffix("_noise") in DIRTY])
    figures |= {f"delta.{key}": dirty[f"delta.any.{key}"] for key in ("precision", "recall", "flagged")}
    clean = averaged(found, ["clean"])
    figures |= {"clean.flagged_share": clean["mistakes.flagged_share"], "clean.right": clean["right.flagged_share"]}
    return figures | {f"poisoned.{name}": dirty[f"{name}.flagged_share"] for name in ("mistakes", "right")}


def wanted(key: str) -> bool:
    """Of an attack: how well it worked, and what each detector made of it."""
    return key == "success" or (key.rpartition(".")[2] in COMPARED and not key.startswith(("points", "candidates")))


def averaged(found: dict[tuple[str, str], dict[str, float]], over: list[str]) -> dict[str, float]:
    """Every figure's mean over the cells of those attacks; an attack that never worked has none but its success."""
    chosen = [figures for (_, attack), figures in found.items() if attack in over]
    keys = dict.fromkeys(key for figures in chosen for key in figures)
    return {key: mean(figures[key] for figures in chosen if key in figures) for key in keys}


def cell_text(values: dict[str, float], prefix: str) -> str:
    """A dash where the attack never worked, so that there was nothing to detect."""
    found = [values.get(f"{prefix}{key}") for key in COMPARED[:3]]
    return " / ".join(f"{100 * value:.0f}" for value in found if value is not None) or "–"


def table(result: dict[str, Any]) -> str:
    """Detectors by attacks: precision / recall / average precision in percent; with and without the switch."""
    values = result["mean"]
    shown = [name + suffix for name in ATTACKS for suffix in ("", "_noise") if f"{name}{suffix}.success" in values]
    found = dict.fromkeys(key.split(".")[1] for key in values if key.endswith(".any.recall"))
    parts = []
    for title, way in (("Rows with the predicted label", ""), ("Any row", "any.")):
        lines = [f"{title}: precision / recall / average precision, percent", ""]
        lines += ["| detector | " + " | ".join(shown) + " |", "|---|" + "--:|" * len(shown)]
        for name in found:
            each = [cell_text(values, f"{attack}.{name}.{way}") for attack in shown]
            lines.append(f"| {name} | " + " | ".join(each) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
