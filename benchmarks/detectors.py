"""Detectors told one affected point: how much of the planted poison they find, and what they flag for innocent points.

Digits, and 2,000 rows each of MNIST and Fashion-MNIST with a small network (`full`: CIFAR-10, ResNet-18); the
poisonings of benchmarks/_detect.py, also with 2 % wrong labels. Means over datasets, and over poisonings where several
are named:

    POISONING.success        share of the triggered test images that the model predicts as the attacker wants
    POISONING.DETECTOR.*     precision (0 where nothing is flagged), recall, average precision, rows flagged; only rows
                             with the predicted label. Of joint and renormalised also the false alarms that they expect
    POISONING.DETECTOR.any.* the same without the same-label switch
    badnet.*, smooth.*       of the default detector, over all poisonings by that attack: the bars are about these
    delta.*                  of the paper's own run (50 copies, no damping, no filter), over the dirty-label attacks
    clean.flagged_share      innocent rows that the default flags, of all, for natural mistakes of a model of clean data
    clean.right              the same for points that are predicted rightly
    poisoned.mistakes        the same for natural mistakes in the class that is under attack
    poisoned.right           the worst case: rightly predicted points of that class, reported by mistake
"""

from typing import Any

from benchmarks._detect import ATTACKS, POISONINGS, averaged, cells
from decant.detectors.base import names
from decant.detectors.settings import DetectSettings

DIRTY = ("badnet", "badnet_all", "smooth")
QUALITY = ("precision", "recall", "average_precision")
COMPARED = (*QUALITY, "flagged", "said_false_alarms", "seconds")


def run(scale: str, seed: int) -> dict[str, float]:
    found = cells(scale, seed)
    known = [name for name in POISONINGS if any(name == poisoning for _, poisoning in found)]
    attacked = {name: attack for name in known if (attack := POISONINGS[name].attack) is not None}
    figures: dict[str, float] = {}
    for poisoning in sorted(attacked):
        figures |= {f"{poisoning}.{key}": value for key, value in averaged(found, [poisoning]).items()}
        for name in names():
            for group, way in (("detectors", ""), ("any_label", "any.")):
                each = averaged(found, [poisoning], group, name)
                figures |= {f"{poisoning}.{name}.{way}{key}": each[key] for key in COMPARED if key in each}
    for kind in ("badnet", "smooth"):
        over = [poisoning for poisoning, attack in attacked.items() if ATTACKS[attack]["name"] == kind]
        default = averaged(found, over, "detectors", DetectSettings().detector)
        figures |= {f"{kind}.{key}": default.get(key, 0.0) for key in COMPARED if over}
    dirty = [poisoning for poisoning, attack in attacked.items() if attack in DIRTY]
    delta = averaged(found, dirty, "any_label", "delta")
    figures |= {f"delta.{key}": delta[key] for key in ("precision", "recall", "flagged")}
    clean, poisoned = averaged(found, ["clean"], "innocent"), averaged(found, dirty, "innocent")
    figures |= {"clean.flagged_share": clean["mistakes"], "clean.right": clean["right"]}
    return figures | {f"poisoned.{name}": poisoned[name] for name in ("mistakes", "right")}


def table(result: dict[str, Any]) -> str:
    """Detectors by poisonings: precision / recall / average precision in percent; with and without the switch."""
    values = result["mean"]
    shown = [poisoning for poisoning in POISONINGS if f"{poisoning}.success" in values]
    parts = []
    for title, way in (("Rows with the predicted label", ""), ("Any row", "any.")):
        lines = [f"{title}: precision / recall / average precision, percent", ""]
        lines += ["| detector | " + " | ".join(shown) + " |", "|---|" + "--:|" * len(shown)]
        for name in names():
            each = [quality(values, f"{poisoning}.{name}.{way}") for poisoning in shown]
            lines.append(f"| {name} | " + " | ".join(each) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def quality(values: dict[str, float], prefix: str) -> str:
    """A dash where the attack never worked, so that there was nothing to detect."""
    found = [values.get(f"{prefix}{key}") for key in QUALITY]
    return " / ".join(f"{100 * value:.0f}" for value in found if value is not None) or "–"
