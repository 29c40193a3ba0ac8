"""report: the page that shows what was wrong, what was done about it, and what it was worth.

Reads the planted truth only to show beside each suspicion whether it was right.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from decant.data.images import Images, concat_images
from decant.data.tables import (
    iter_images,
    read_images,
    read_labels,
    read_perturbations,
    read_places,
    read_rejected,
    read_truth,
    read_verdicts,
)
from decant.files import read_json, write_text
from decant.report.page import Evidence, Example, Summaries, most_suspicious, render
from decant.report.settings import ReportSettings
from decant.summaries import ReportSummary

CLASSES_SHOWN = 10


def run(
    *,
    report: ReportSettings,
    metrics: Path,
    settings: Path,
    received: Path,
    truth: Path,
    ingest_dir: Path,
    purify_1_dir: Path,
    purify_2_dir: Path,
    verify_dir: Path,
    detect_dir: Path,
    evaluate_dir: Path,
    out: Path,
) -> ReportSummary:
    folders = {
        "ingest": ingest_dir,
        "purify_1": purify_1_dir,
        "purify_2": purify_2_dir,
        "verify": verify_dir,
        "detect": detect_dir,
        "evaluate": evaluate_dir,
    }
    verdicts = {stage: read_verdicts(folders[stage] / "verdicts.parquet") for stage in ("purify_2", "verify", "detect")}
    ids, labels, info = read_labels(received)
    reviewed = pd.read_csv(verify_dir / "reviews.csv")["id"]
    # Each stage's suspects as that stage saw them: its input is the output of the one before it.
    suspects = {
        "verify": rows_of(purify_2_dir / "train.parquet", most_suspicious(verdicts["verify"], report.rows, reviewed)),
        "detect": rows_of(verify_dir / "train.parquet", most_suspicious(verdicts["detect"], report.rows)),
    }
    evidence = Evidence(
        metrics=read_json(metrics),
        settings=yaml.safe_load(settings.read_text(encoding="utf-8")) or {},
        info=info,
        shape=next(iter_images(received)).shape,
        ids=ids,
        labels=labels,
        summaries=Summaries.read(ingest_dir.parent),
        verdicts=verdicts,
        suspects=suspects,
        reviewed=len(reviewed),
        examples=examples(received, purify_1_dir, purify_2_dir, verdicts["verify"], pd.Series(labels, index=ids)),
        affected=read_images(folders["detect"] / "affected.parquet"),
        truth=read_truth(truth),
        rejected=read_rejected(ingest_dir / "rejected.parquet"),
        duplicates=len(pd.read_csv(ingest_dir / "duplicates.csv")),
        places=read_places(ingest_dir / "places.parquet"),
    )
    page = render(evidence)
    write_text(out / "index.html", page)
    rows_out = evidence.counts["kept"]
    return ReportSummary(rows_in=len(ids), rows_out=rows_out, bytes=len(page.encode()), note="wrote index.html")


def rows_of(path: Path, ids: np.ndarray) -> Images:
    """The rows with those ids, in their order; one row group in memory at a time."""
    found = concat_images([rows.select(np.isin(rows.ids, ids)) for rows in iter_images(path)])
    order = pd.Series(np.arange(len(found)), index=found.ids).loc[ids]
    return found.select(order.to_numpy())


def examples(
    received: Path, purify_1_dir: Path, purify_2_dir: Path, trust: pd.DataFrame, labels: pd.Series
) -> list[Example]:
    """One row of each of up to CLASSES_SHOWN classes; none where purification took nothing off.

    Of every class the row whose label is trusted most, so that the strip shows the class and not a wrong label.
    """
    ids, first = read_perturbations(purify_1_dir / "perturbations.parquet")
    second_ids, second = read_perturbations(purify_2_dir / "perturbations.parquet")
    assert np.array_equal(ids, second_ids), "both stages of purification see the same rows"
    if not (first.any() or second.any()):
        return []
    classes = np.unique(labels)
    shown = classes[np.linspace(0, len(classes) - 1, min(CLASSES_SHOWN, len(classes))).round().astype(int)]
    given = labels.loc[ids].to_numpy()
    ranked = pd.Series(np.concatenate([trust.sort_values(["score", "id"])["id"].to_numpy(), ids]))
    chosen = {int(c): int(ranked[labels.loc[ranked].to_numpy() == c].iloc[0]) for c in shown}
    wanted = np.array(list(chosen.values()))
    before, after = rows_of(received, wanted), rows_of(purify_2_dir / "train.parquet", wanted)
    places = pd.Series(np.arange(len(ids)), index=ids).loc[wanted]
    return [
        Example(
            row_id=row_id,
            label=label,
            received=before.pixels[i],
            perturbations=(first[place], second[place]),
            purified=after.pixels[i],
            class_mean=first[given == label].mean(0, dtype=float) + second[given == label].mean(0, dtype=float),
        )
        for i, ((label, row_id), place) in enumerate(zip(chosen.items(), places, strict=True))
    ]
