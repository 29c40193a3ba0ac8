"""evaluate: what each step was worth, on clean test rows and on triggered ones, and how its verdicts meet the truth.

Reads the planted truth, which no cleaning stage may. Without a simulation the figures that need a truth are absent.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decant.attacks.base import kind_of
from decant.data.images import Images
from decant.data.tables import count_rows, read_images, read_truth, read_verdicts
from decant.files import write_json, write_text
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, steps_of, train_classifier
from decant.report.metrics import histogram, model_metrics, verdict_metrics
from decant.report.settings import EvaluateSettings
from decant.runtime import Progress, be_deterministic
from decant.steps import ORACLE, STEPS
from decant.summaries import EvaluateSummary, VerifySummary


def run(
    *,
    seed: int,
    train: TrainSettings,
    evaluate: EvaluateSettings,
    test: Path,
    simulate_dir: Path,
    baseline_dir: Path,
    purify_dir: Path,
    verify_dir: Path,
    model: Path,
    detect_dir: Path,
    unlearned: Path,
    metrics: Path,
    out: Path,
) -> EvaluateSummary:
    be_deterministic()
    received = read_images(simulate_dir / "train.parquet")
    purified = read_images(purify_dir / "train.parquet")
    progress = Progress("evaluate", steps_of(len(purified), train))
    purified_model = train_classifier(purified, train, seed=seed, on_step=progress.step)
    networks.save(out / "purified.safetensors", purified_model, architecture_of(purified, train))
    trained = {
        "as_received": (baseline_dir / "received.safetensors", len(received)),
        "purified": (out / "purified.safetensors", len(purified)),
        "verified": (model, count_rows(verify_dir / "train.parquet")),
        "cleaned": (unlearned, count_rows(detect_dir / "train.parquet")),
        "oracle": (baseline_dir / "oracle.safetensors", len(received)),
    }
    clean_test, triggered = read_images(test), read_images(simulate_dir / "triggered.parquet")
    figures: dict[str, Any] = {
        step: model_metrics(networks.load(path)[0], test=clean_test, triggered=triggered, rows=rows)
        for step, (path, rows) in trained.items()
        if path.is_file()  # without a simulation there is no oracle
    }
    verdicts = {
        stage: read_verdicts(folder / "verdicts.parquet")
        for stage, folder in (("purify", purify_dir), ("verify", verify_dir), ("detect", detect_dir))
    }
    truth = read_truth(simulate_dir / "truth.parquet")
    if len(truth):
        guilty = guilty_rows(truth, received)
        figures |= {stage: verdict_metrics(frame, guilty[stage]) for stage, frame in verdicts.items()}
    figures["reviews"] = VerifySummary.read(verify_dir).reviews
    write_json(metrics, figures)
    write_plots(out, figures, list(verdicts.values()), evaluate.bins)
    before, after = (figures[step]["accuracy"] for step in ("as_received", "cleaned"))
    return EvaluateSummary(
        rows_in=len(received),
        rows_out=trained["cleaned"][1],
        accuracy_received=before,
        accuracy_cleaned=after,
        note=f"clean accuracy {before:.3f} as received, {after:.3f} cleaned ({100 * (after - before):+.1f} points)",
    )


def guilty_rows(truth: pd.DataFrame, received: Images) -> dict[str, np.ndarray]:
    """Stage to the ids that it ought to flag: noisy pixels, wrong labels, backdoor rows.

    A dirty-label backdoor row is guilty of both its label and its trigger; a label-consistent one of its trigger alone.
    """
    kinds = truth["attack"].map({name: kind_of(name) for name in truth["attack"].unique()})
    given = pd.Series(received.labels, index=received.ids)
    mislabelled = truth["original_label"].to_numpy() != given.loc[truth["id"]].to_numpy()
    return {
        "purify": truth.loc[kinds == "noise", "id"].unique(),
        "verify": truth.loc[mislabelled, "id"].unique(),
        "detect": truth.loc[kinds == "backdoor", "id"].unique(),
    }


def write_plots(out: Path, figures: dict[str, Any], verdicts: list[pd.DataFrame], bins: int) -> None:
    """steps.csv and histograms.csv, for `dvc plots` and the report."""
    steps = pd.DataFrame([{"step": step.key, **figures[step.key]} for step in (*STEPS, ORACLE) if step.key in figures])
    write_text(out / "steps.csv", steps.to_csv(index=False, lineterminator="\n"))
    bars = pd.concat([histogram(frame, bins) for frame in verdicts], ignore_index=True)
    write_text(out / "histograms.csv", bars.to_csv(index=False, lineterminator="\n"))
