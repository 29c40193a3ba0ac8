"""The steps of the data on its way through the stages, the checks of its rows, and their names for people.

evaluate, the report, the terminal's result table, `decant explain` and the benchmarks all read these lists.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """The data at one step, and the model that was trained on it. Files are relative to the folder `data`."""

    key: str
    """In metrics.json and steps.csv."""
    name: str
    rows: str
    """The training rows, an Images table."""
    model: str


STEPS = (
    Step("as_received", "as received", "simulate/train.parquet", "baseline/received.safetensors"),
    Step("purified", "after purification", "purify_2/train.parquet", "baseline/purified.safetensors"),
    Step("verified", "after label verification", "verify/train.parquet", "train/model.safetensors"),
    Step("cleaned", "after Δ-Influence and unlearning", "detect/train.parquet", "unlearn/model.safetensors"),
)
ORACLE = Step("oracle", "never poisoned", "ingest/train.parquet", "baseline/oracle.safetensors")
"""The upper bound of an experiment: the same rows without the planted poison. Absent where none was planted."""


@dataclass(frozen=True)
class Check:
    """A stage that judges every row."""

    key: str
    """In metrics.json."""
    stage: str
    """Whose folder holds the verdicts."""
    name: str
    looks_for: str


CHECKS = (
    Check("purify", "purify_2", "purification", "perturbed pixels"),
    Check("verify", "verify", "label verification", "wrong labels"),
    Check("detect", "detect", "Δ-Influence", "rows with a backdoor trigger"),
)
