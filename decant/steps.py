"""The steps of the data on its way through the stages, the checks of its rows, and their names for people.

evaluate, the report, the terminal's result table, `decant explain` and the benchmarks all read these lists.
"""

from dataclasses import dataclass
from pathlib import Path

from decant.paths import MODEL, ORACLE_MODEL, PURIFIED_MODEL, RECEIVED_MODEL, UNLEARNED_MODEL


@dataclass(frozen=True)
class Step:
    """The data at one step, and the model that was trained on it."""

    key: str
    """In metrics.json and steps.csv."""
    name: str
    stage: str
    """Passes the training rows on."""
    model: Path


STEPS = (
    Step("as_received", "as received", "simulate", RECEIVED_MODEL),
    Step("purified", "after purification", "purify_2", PURIFIED_MODEL),
    Step("verified", "after label verification", "verify", MODEL),
    Step("cleaned", "after Δ-Influence and unlearning", "detect", UNLEARNED_MODEL),
)
ORACLE = Step("oracle", "never poisoned", "ingest", ORACLE_MODEL)
"""The upper bound of an experiment: the same rows without the planted poison. Absent where none was planted."""
ROW_STAGES = ("ingest", "simulate", "purify_1", "purify_2", "verify", "detect")
"""The stages that pass training rows on, in their order."""


@dataclass(frozen=True)
class Check:
    """A stage that judges every row."""

    key: str
    """In metrics.json."""
    stage: str
    """Whose folder holds the verdicts."""
    name: str
    looks_for: str
    score: str
    """What the score of a row is; a high one is suspicious."""


CHECKS = (
    Check(
        "purify",
        "purify_2",
        "purification",
        looks_for="perturbed pixels",
        score="margin by which a linear probe predicts the label from what was removed",
    ),
    Check("verify", "verify", "label verification", looks_for="wrong labels", score="1 − trust in the label"),
    Check(
        "detect",
        "detect",
        "Δ-Influence",
        looks_for="rows with a backdoor trigger",
        score="how much the row is a cause of the affected points",
    ),
)
