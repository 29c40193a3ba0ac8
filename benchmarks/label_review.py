"""LabelTrust's review rounds: rows chosen by the loop, rows drawn at random, an expert who errs.

`CHOICE.x10.*`, `.loopN.*`: LabelTrust on all of MNIST with 9.4 % random wrong labels, as in `label-cleaning`, before
and after each of five loops of 50 reviews; CHOICE: `active` (the default), `random` (verify.choice), `erring` (active,
and 5 % of the answers name another class). `expert_error_5.frr_cost`: right labels refused more because of those
errors, after five loops. `random_after_active.frr`: what random choice refuses more than active choice.
"""

from typing import Any

from benchmarks._labels import LOOPS, after, cells

CHOICES = {"active": "plus", "random": "random_choice", "erring": "erring_expert"}
SHOWN = ("frr", "trr", "auroc", "reviews")


def run(scale: str, seed: int) -> dict[str, float]:
    found = cells("label-loops", [("mnist", "random", method, seed) for method in CHOICES.values()])
    figures: dict[str, float] = {}
    for choice, method in CHOICES.items():
        figure = found["mnist", "random", method, seed]
        for loop in range(LOOPS + 1):
            name = "x10" if loop == 0 else f"loop{loop}"
            figures |= {f"{choice}.{name}.{key}": after(figure, loop)[key] for key in SHOWN}
    last = {choice: figures[f"{choice}.loop{LOOPS}.frr"] for choice in CHOICES}
    return figures | {
        "expert_error_5.frr_cost": last["erring"] - last["active"],
        "random_after_active.frr": last["random"] - last["active"],
    }


def table(result: dict[str, Any]) -> str:
    """FRR / TRR in percent by the number of reviews."""
    lines = ["| reviews | " + " | ".join(CHOICES) + " |", "|--:|" + "--:|" * len(CHOICES)]
    for loop in range(LOOPS + 1):
        name = "x10" if loop == 0 else f"loop{loop}"
        shown = [
            " / ".join(f"{100 * result['mean'][f'{choice}.{name}.{key}']:.2f}" for key in ("frr", "trr"))
            for choice in CHOICES
        ]
        lines.append(f"| {result['mean'][f'active.{name}.reviews']:.0f} | " + " | ".join(shown) + " |")
    return "FRR / TRR in percent:\n\n" + "\n".join(lines)
