"""The report: what was wrong with a dataset and what was done about it, as one HTML page to look at.

Everything is inside the file: styles, drawings, and images as PNG data URIs; nothing is fetched. What differs from run
to run (seconds, memory, device, date) stays outside: the page loads it from ``../runs/runs.js`` where that exists, and
is complete without. The same run gives the same bytes.

Cost: about a second for thousands of rows; under 1.5 MB with the default of 18 suspicious rows per stage.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from jaxtyping import Bool
from markupsafe import Markup

from decant.report import charts
from decant.report.charts import StepFigures
from decant.report.examples import Example
from decant.report.pictures import diverging, png_uri, shown_side
from decant.report.run import FinishedRun
from decant.report.words import headline, percent, plain, reasons, sentence
from decant.steps import CHECKS, ORACLE, STEPS

STRIP_SIDE, CARD_SIDE = 72, 92  # CSS pixels that a picture should take: about, at a whole multiple of its own size
SCORES = {check.stage: check.score for check in CHECKS}
DONE = {"keep": "kept", "drop": "dropped", "relabel": "relabelled", "purify": "purified"}


def render(run: FinishedRun) -> str:
    """The report of a run as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "thousands": "{:,}".format, "picture": png_uri}
    environment.filters |= {"plain": plain, "sentence": sentence}
    template = resources.files("decant.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    steps = _steps(run.metrics)
    return environment.from_string(template).render(
        run=run,
        said=run.summaries,
        names=run.info.class_names,
        headline=headline(run),
        before=run.metrics.get("as_received", {}),
        after=run.metrics.get("cleaned", {}),
        oracle=run.metrics.get("oracle", {}),
        steps=steps,
        steps_chart=charts.steps_chart(steps),
        charts=charts,
        strip=[_strip(example, run) for example in run.examples],
        suspects={stage: _cards(stage, run) for stage in run.suspects},
        histograms={stage: _histogram(stage, run) for stage in run.verdicts},
        checks=[(check, run.metrics[check.key]) for check in CHECKS if check.key in run.metrics],
        refused=reasons(run.rejected),
        zip=zip,
        side=shown_side(run.shape, STRIP_SIDE),
        card_side=shown_side(run.shape, CARD_SIDE),
    )


def _steps(metrics: Mapping[str, Any]) -> list[StepFigures]:
    return [
        StepFigures(
            name=step.name,
            accuracy=found.get("accuracy"),
            poison_success=found.get("poison_success"),
            rows=found.get("rows"),
            apart=step is ORACLE,
        )
        for step in (*STEPS, ORACLE)
        if (found := metrics.get(step.key))
    ]


def _strip(example: Example, run: FinishedRun) -> dict[str, Any]:
    return {
        "id": example.row_id,
        "name": run.info.class_names[example.label],
        "received": png_uri(example.received),
        "perturbations": [png_uri(diverging(p)) for p in example.perturbations],
        "purified": png_uri(example.purified),
        "class_mean": png_uri(diverging(example.class_mean)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Suspicious rows
# ---------------------------------------------------------------------------------------------------------------------


def _cards(stage: str, run: FinishedRun) -> list[dict[str, Any]]:
    """What the page says about each suspicious row."""
    images, verdicts = run.suspects[stage], run.verdicts[stage].set_index("id")
    cards = []
    for row_id, pixels, label in zip(images.ids, images.pixels, images.labels, strict=True):
        verdict = verdicts.loc[row_id]
        suggested = verdict["suggested_label"]
        cards.append(
            {
                "id": int(row_id),
                "path": run.places[row_id],
                "picture": png_uri(pixels),
                "given": run.info.class_names[label],
                "suggested": None if pd.isna(suggested) else run.info.class_names[suggested],
                "score": float(verdict["score"]),
                "action": DONE[verdict["action"]],
                "reason": verdict["reason"],
                "truth": _truth(stage, int(row_id), int(label), run),
            }
        )
    return cards


def _truth(stage: str, row_id: int, label: int, run: FinishedRun) -> dict[str, Any] | None:
    """Whether the suspicion was right, and how we know; None where nobody knows."""
    if not run.known:
        return None
    if stage == "verify":
        original = int(run.original_labels[row_id])
        words = "label is right" if original == label else f"really {run.info.class_names[original]}"
        return {"bad": original != label, "words": words}
    attacks = run.planted.get(row_id)
    words = "nothing planted" if attacks is None else f"planted: {', '.join(attacks)}"
    return {"bad": row_id in run.backdoored, "words": words}


def _histogram(stage: str, run: FinishedRun) -> Markup | None:
    """None where a stage gave no scores, or only one and the same."""
    verdicts = run.verdicts[stage]
    if verdicts["score"].nunique() < 2:
        return None
    return charts.histogram(
        verdicts["score"].to_numpy(dtype=float),
        verdicts["flagged"].to_numpy(),
        planted=_planted(stage, verdicts, run) if run.known else None,
        threshold=_threshold(stage, run),
        axis=SCORES[stage],
        bins=run.evaluate.bins,
    )


def _planted(stage: str, verdicts: pd.DataFrame, run: FinishedRun) -> Bool[np.ndarray, " n"]:
    """Of which rows the simulation planted what the stage looks for."""
    if stage == "verify":
        ids = verdicts["id"]
        return run.given.loc[ids].to_numpy() != run.original_labels.loc[ids].to_numpy()
    return verdicts["id"].isin(list(run.carrying("unlearnable" if stage == "purify_2" else "backdoor"))).to_numpy()


def _threshold(stage: str, run: FinishedRun) -> float | None:
    """The score from which on rows were flagged, where there is one."""
    if stage == "verify":  # the expert's verdicts stand on either side of it
        trust = run.summaries.verify.threshold
        return None if trust is None else 1 - trust
    verdicts = run.verdicts[stage]
    flagged = verdicts.loc[verdicts["flagged"], "score"]
    return float(flagged.min()) if len(flagged) else None
