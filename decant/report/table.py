"""The result of a run as a table: metrics.json and the run records, for the terminal and for Prefect's page.

Every number may be missing: without a simulation there is no truth and no poison success rate, and a run of a few
stages leaves no metrics at all. Missing numbers show as a dash; a row without any number is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decant.files import read_json
from decant.paths import METRICS, RUNS, VERIFY
from decant.runtime import read_runs
from decant.steps import CHECKS, ORACLE, STEPS
from decant.summaries import FILE, VerifySummary

STEP_HEADS = ("model trained on the data", "accuracy", "poison success", "rows")  # fits 80 columns
CLEANER_HEADS = ("rows that were flagged by", "flagged", "precision", "recall")
DASH = "–"
Row = tuple[str, ...]


@dataclass(frozen=True)
class ResultTable:
    """The figures of a run, as text."""

    steps: list[Row]
    """Rows under STEP_HEADS."""
    cleaners: list[Row]
    """Rows under CLEANER_HEADS."""
    notes: list[str]


def read_result() -> ResultTable | None:
    """The result of the last run; None when nothing was measured yet."""
    if not METRICS.is_file():
        return None
    queued = VerifySummary.read(VERIFY).queued if (VERIFY / FILE).is_file() else 0
    return result_of(read_json(METRICS), read_runs(RUNS), queued)


def result_of(metrics: Mapping[str, Any], runs: Mapping[str, Any], queued: int = 0) -> ResultTable:
    """The table of metrics.json and the stages' run records. queued: rows that wait for a person's answer."""
    steps: list[Row] = [
        (step.name, percent(found.get("accuracy")), percent(found.get("poison_success")), whole(found.get("rows")))
        for step in (*STEPS, ORACLE)
        if (found := metrics.get(step.key))
    ]
    cleaners: list[Row] = [
        (check.name, whole(found.get("flagged")), percent(found.get("precision")), percent(found.get("recall")))
        for check in CHECKS
        if (found := metrics.get(check.key))
    ]
    notes = []
    if metrics.get("reviews") is not None:
        notes.append(f"rows that an expert looked at: {whole(metrics['reviews'])}")
    if queued:
        notes.append(
            f"{whole(queued)} rows wait for your answer: decant review shows them, and the next decant run "
            "takes the answers in"
        )
    if spent := spent_on(runs.values()):
        notes.append(spent)
    return ResultTable(steps, cleaners, notes)


def spent_on(runs: Any) -> str:
    """`12 stages took 96 s, at most 1.2 GiB of memory (NVIDIA H200)`; empty without records."""
    records = list(runs)
    if not records:
        return ""
    seconds = sum(record.get("seconds", 0) for record in records)
    memory = max(record.get("peak_memory_mib", 0) for record in records)
    device = max((record.get("date", ""), record.get("device", "")) for record in records)[1]
    return (
        f"last runs of {len(records)} stages: {seconds:.0f} s, at most {memory / 1024:.1f} GiB of memory, on {device}"
    )


def percent(value: float | None) -> str:
    """`98.1 %`; a dash for None."""
    return DASH if value is None else f"{100 * value:.1f} %"


def whole(value: int | None) -> str:
    """`2,874`; a dash for None."""
    return DASH if value is None else f"{value:,}"


def as_markdown(result: ResultTable) -> str:
    """The table in Markdown, for Prefect's page."""
    parts = [_markdown(STEP_HEADS, result.steps), _markdown(CLEANER_HEADS, result.cleaners)]
    return "\n\n".join([part for part in parts if part] + [f"* {note}" for note in result.notes])


def _markdown(heads: Row, rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = [heads, ("---", *["--:"] * (len(heads) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
