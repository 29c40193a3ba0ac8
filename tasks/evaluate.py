"""evaluate: measure the models of all steps on clean and on triggered test rows, and the verdicts against the truth.

Reads the planted truth, which no cleaning stage may. Without a simulation the figures that need a truth are absent.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from decant.data.tables import count_rows, read_images, read_labels, read_truth, read_verdicts
from decant.files import write_csv, write_json
from decant.models import networks
from decant.paths import RECEIVED, TEST, TRIGGERED, TRUTH, stage_folder, train_rows, verdicts_file, within
from decant.report.metrics import histogram, model_metrics, rows_to_flag, verdict_metrics
from decant.report.settings import EvaluateSettings
from decant.runtime import be_deterministic
from decant.steps import CHECKS, ORACLE, STEPS
from decant.summaries import EvaluateSummary, VerifySummary


def run(*, evaluate: EvaluateSettings, data: Path, metrics: Path, out: Path) -> EvaluateSummary:
    be_deterministic()
    verdicts = {check.key: read_verdicts(verdicts_file(check.stage, data)) for check in CHECKS}
    models, checks = measured_models(data), measured_checks(data, verdicts)
    write_json(metrics, {**models, **checks, "reviews": VerifySummary.read(stage_folder("verify", data)).reviews})
    write_csv(out / "steps.csv", pd.DataFrame([{"step": step, **figures} for step, figures in models.items()]))
    bars = [histogram(frame, evaluate.bins) for frame in verdicts.values()]
    write_csv(out / "histograms.csv", pd.concat(bars, ignore_index=True))
    received, cleaned = models["as_received"], models["cleaned"]
    before, after = received["accuracy"], cleaned["accuracy"]
    return EvaluateSummary(
        rows_in=received["rows"],
        rows_out=cleaned["rows"],
        accuracy_received=before,
        accuracy_cleaned=after,
        note=f"clean accuracy {before:.3f} as received, {after:.3f} cleaned ({100 * (after - before):+.1f} points)",
    )


def measured_models(data: Path) -> dict[str, dict[str, Any]]:
    """Step to the figures of its model; the oracle is absent without a simulation."""
    test, triggered = read_images(within(data, TEST)), read_images(within(data, TRIGGERED))
    return {
        step.key: model_metrics(
            networks.load(model)[0], test=test, triggered=triggered, rows=count_rows(train_rows(step.stage, data))
        )
        for step in (*STEPS, ORACLE)
        if (model := within(data, step.model)).is_file()
    }


def measured_checks(data: Path, verdicts: dict[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Check to the figures of its verdicts; empty without a simulation."""
    truth = read_truth(within(data, TRUTH))
    if truth.empty:
        return {}
    ids, labels, _ = read_labels(within(data, RECEIVED))
    wanted = rows_to_flag(truth, pd.Series(labels, index=ids))
    return {check: verdict_metrics(frame, wanted[check]) for check, frame in verdicts.items()}
