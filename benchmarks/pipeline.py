"""The whole pipeline on poisoned data: the demo's digits, and MNIST limited to 6,000 rows (60,000 at full scale).

Three poisons at once, as in params.yaml. `gain` is clean accuracy after cleaning less as received; `gap` is the
oracle's (never poisoned) less the cleaned; poison success before is as received, after is cleaned. `clean.*` is MNIST
without any poison: what the pipeline does to data that has nothing wrong with it. Seconds are all stages one after
the other, interpreter starts and imports included.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks._stages import dataset, metrics, params, run_stages

ROWS = {"small": 6_000, "full": 60_000}


def run(scale: str, seed: int) -> dict[str, float]:
    mnist = {"ingest.source": dataset("mnist"), "ingest.limit": ROWS[scale]}
    cases = {"demo": {}, "mnist": mnist, "clean": {**mnist, "simulate.attacks": []}}
    figures: dict[str, float] = {}
    for case, changes in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = run_stages(Path(folder), params(seed, changes))
            found = metrics(Path(folder))
        figures |= {f"{case}.{key}": value for key, value in summary(found).items()}
        figures[f"{case}.seconds"] = sum(seconds.values())
    return figures


def summary(found: dict[str, Any]) -> dict[str, float]:
    """The figures that the bars speak of, from metrics.json."""
    received, cleaned, oracle = found["as_received"], found["cleaned"], found["oracle"]
    figures = {f"{step}.accuracy": found[step]["accuracy"] for step in ("as_received", "purified", "verified")}
    figures |= {
        "cleaned.accuracy": cleaned["accuracy"],
        "oracle.accuracy": oracle["accuracy"],
        "gain": cleaned["accuracy"] - received["accuracy"],
        "gap": oracle["accuracy"] - cleaned["accuracy"],
        "rows_lost": 1 - cleaned["rows"] / received["rows"],
        "reviews": found["reviews"],
    }
    if "poison_success" in received:
        figures |= {"poison_before": received["poison_success"], "poison_after": cleaned["poison_success"]}
    for stage in ("verify", "detect"):
        for key in ("precision", "recall"):
            if key in found.get(stage, {}):
                figures[f"{stage}.{key}"] = found[stage][key]
    return figures
