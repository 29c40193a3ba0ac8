"""verify: judges every label, with an expert's help, and drops or corrects the rows that it can't trust.

The method is LabelTrust, or any label check (``verify.method``).

The expert is the simulation's truth (``verify.expert: oracle``: for experiments, and the only use of the truth here) or
a person's answers in a CSV (``file``, ``person``). Rows that a person has yet to answer are in queue.csv; the stage
doesn't wait for them (with ``person`` the flow does, and runs it again).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from decant.data.images import Images
from decant.data.tables import apply_verdicts, read_digests, read_images, read_truth, write_images, write_verdicts
from decant.files import write_csv
from decant.label_checks.verification import steps_of
from decant.label_checks.verification import verify as verify_labels
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.note import note
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import parse_threshold, zero_failure_bound
from decant.labeltrust.verify import VerifyOutcome
from decant.models.embeddings import read_embeddings
from decant.runtime import Progress, be_deterministic
from decant.summaries import Reliability, VerifySummary

HOW_ASKED = ["round", "rows", "why", "picture"]
QUEUE = ["id", "given", "suggested", "trust", "label", *HOW_ASKED, "like_given", "like_suggested"]


def run(
    *, seed: int, verify: VerifySettings, images: Path, received: Path, truth: Path, decisions: Path, out: Path
) -> VerifySummary:
    rows = read_images(images)
    outcome, nothing_planted, outdated = switched_off(rows), False, 0
    pictures: dict[int, str] = {}
    if verify.enabled:
        be_deterministic()
        expert: Oracle | FileExpert
        if verify.expert == "oracle":
            known = read_truth(truth)
            expert, nothing_planted = Oracle(rows, known), known.empty
        else:
            pictures = read_digests(received)
            expert = FileExpert(decisions, rows, pictures)
            outdated = expert.outdated
        progress = Progress("verify", steps_of(verify, rows))
        features = read_embeddings(Path(verify.embeddings), rows.ids) if verify.embeddings else None
        outcome = verify_labels(rows, expert, verify, seed=seed, embeddings=features, on_step=progress.step)
    kept = apply_verdicts(rows, outcome.verdicts)
    write_images(out / "train.parquet", kept)
    write_verdicts(out / "verdicts.parquet", outcome.verdicts)
    if outcome.scorer is not None:
        outcome.scorer.save(out / "scorer.safetensors")
    write_csv(out / "reviews.csv", outcome.reviews)
    queue = outcome.queue.assign(picture=outcome.queue["id"].map(pictures))
    write_csv(out / "queue.csv", queue.rename(columns={"answer": "label"}).reindex(columns=QUEUE))
    confirmed = lowest_confirmed_rate(verify, outcome.reviews)
    said = note(
        outcome,
        verify,
        decisions=decisions,
        lowest_confirmed_rate=confirmed,
        outdated=outdated,
        nothing_planted=nothing_planted,
    )
    return summary_of(
        outcome, verify.method, rows_in=len(rows), rows_out=len(kept), lowest_confirmed_rate=confirmed, note=said
    )


def summary_of(
    outcome: VerifyOutcome, method: str, *, rows_in: int, rows_out: int, lowest_confirmed_rate: float | None, note: str
) -> VerifySummary:
    """The outcome in figures, rounded."""
    actions, found = outcome.verdicts["action"].value_counts(), outcome.reliability
    interval = outcome.label_noise_interval
    return VerifySummary(
        method=method,
        rows_in=rows_in,
        rows_out=rows_out,
        dropped=int(actions.get("drop", 0)),
        relabelled=int(actions.get("relabel", 0)),
        reviews=len(outcome.reviews),
        queued=len(outcome.queue),
        label_noise_rate=rounded(outcome.label_noise_rate),
        label_noise_interval=interval and (round(interval[0], 4), round(interval[1], 4)),
        reliability=None
        if found is None
        else Reliability(rows=int(found["rows"]), brier=round(found["brier"], 4), ece=round(found["ece"], 4)),
        threshold=rounded(outcome.threshold),
        operating_points=tuple(
            replace(point, trust=round(point.trust, 6), far=round(point.far, 6), frr=round(point.frr, 6))
            for point in outcome.operating_points
        ),
        lowest_confirmed_rate=rounded(lowest_confirmed_rate),
        classifier_weight=outcome.classifier_weight,
        note=note,
    )


def switched_off(images: Images) -> VerifyOutcome:
    """Every row kept, nobody asked."""
    nobody = Reviews(images).table(np.zeros(len(images), bool))
    verdicts = pd.DataFrame(
        {
            "id": images.ids,
            "stage": "verify",
            "score": np.zeros(len(images), np.float32),
            "flagged": False,
            "action": "keep",
            "reason": "switched off",
        }
    )
    return VerifyOutcome(verdicts=verdicts, reviews=nobody, queue=nobody)


def lowest_confirmed_rate(verify: VerifySettings, reviews: pd.DataFrame) -> float | None:
    """The lowest rate that the rows drawn at random could confirm; None where the threshold is no target rate."""
    if not isinstance(verify.threshold, str):
        return None
    drawn = reviews[reviews["round"] == 0]
    wrong = (drawn["given"] != drawn["answer"]) & (drawn["answer"] != "unclear")
    kind, _ = parse_threshold(verify.threshold)
    return zero_failure_bound(int(wrong.sum() if kind == "far" else (drawn["given"] == drawn["answer"]).sum()))


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
