"""verify: LabelTrust judges every label, with an expert's help, and drops or corrects the rows that it can't trust.

The expert is the simulation's truth (``verify.expert: oracle``: for experiments, and the only use of the truth here) or
a person's answers in a CSV (``file``, ``person``). Rows that a person has yet to answer are in queue.csv; the stage
doesn't wait for them (with ``person`` the flow does, and runs it again).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decant.data.images import Images
from decant.data.tables import apply_verdicts, read_digests, read_images, read_truth, write_images, write_verdicts
from decant.files import write_text
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import parsed, resolution
from decant.labeltrust.verify import VerifyOutcome, steps_of
from decant.labeltrust.verify import verify as verify_labels
from decant.models.embeddings import read_embeddings
from decant.runtime import Progress, be_deterministic

HOW_ASKED = ["round", "rows", "why", "picture"]
QUEUE = ["id", "given", "suggested", "trust", "label", *HOW_ASKED, "like_given", "like_suggested"]


def run(
    *, seed: int, verify: VerifySettings, images: Path, received: Path, truth: Path, decisions: Path, out: Path
) -> dict[str, Any]:
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
    summary = {
        "rows_in": len(rows),
        "rows_out": len(kept),
        "dropped": int((outcome.verdicts["action"] == "drop").sum()),
        "relabelled": int((outcome.verdicts["action"] == "relabel").sum()),
        "reviews": len(outcome.reviews),
        "queued": len(outcome.queue),
        "noise_rate": rounded(outcome.noise_rate),
        "noise_interval": outcome.noise_interval and [rounded(bound) for bound in outcome.noise_interval],
        "reliability": outcome.reliability and {key: rounded(value) for key, value in outcome.reliability.items()},
        "threshold": rounded(outcome.threshold),
        "prices": [{key: rounded(value, 6) for key, value in price._asdict().items()} for price in outcome.prices],
        "vouched_for": vouched_for(verify, outcome.reviews),
        "classifier_weight": outcome.classifier_weight,
    }
    said = note(summary, verify, decisions, nothing_planted=nothing_planted)
    if outdated:
        said += f". The answers about {outdated} rows don't count, as these show other pixels now than they did then "
        said += f"(to keep them all the same, empty the column picture of {decisions})"
    if outcome.noise_rate is not None and verify.embeddings:
        said += ". It compared embeddings, so there is no scorer for other pictures"
    if outcome.classifier_weight == 0:
        said += ". The classifier was not heard: it shares labels that the expert refuted, or knows nothing more"
    if outcome.stopped and not summary["queued"]:
        said += f". No further round: {outcome.stopped}"
    return {**summary, "note": said}


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


def vouched_for(verify: VerifySettings, reviews: pd.DataFrame) -> float | None:
    """The lowest rate that the rows drawn at random could confirm where the threshold promises one."""
    if not isinstance(verify.threshold, str):
        return None
    drawn = reviews[reviews["round"] == 0]
    wrong = (drawn["given"] != drawn["answer"]) & (drawn["answer"] != "unclear")
    kind, _ = parsed(verify.threshold)
    return rounded(resolution(int(wrong.sum() if kind == "far" else (drawn["given"] == drawn["answer"]).sum())))


def note(summary: dict[str, Any], verify: VerifySettings, decisions: Path, *, nothing_planted: bool) -> str:
    """What was done, and what a person may have to do next."""
    if not verify.enabled:
        return "switched off: the labels pass through as they are"
    dropped, relabelled, seen = summary["dropped"], summary["relabelled"], summary["reviews"]
    said = f"dropped {dropped} and relabelled {relabelled} of {summary['rows_in']} rows; the expert saw {seen}"
    if summary["noise_rate"] is None:
        said = f"judged no labels, too few references yet; the expert has answered {seen} rows"
    else:
        said += f"; about {summary['noise_rate']:.1%} of the labels looked wrong"
        if summary["noise_interval"]:
            low, high = summary["noise_interval"]
            said += f" (by the rows drawn at random alone, with 95 % confidence: {low:.1%} to {high:.1%})"
    if summary["prices"]:
        far, frr = (summary["prices"][0][key] for key in ("far", "frr"))
        said += (
            f". At this threshold {far:.1%} of the wrong labels are expected to pass and {frr:.1%} of the right ones "
        )
        said += "to be refused, of rows that nobody reviewed"
    if summary["vouched_for"] and summary["vouched_for"] > parsed(verify.threshold)[1]:
        said += f". The promise {verify.threshold} rests on the noise model: the rows that the expert saw at random "
        said += f"can vouch for no less than {summary['vouched_for']:.2g}"
    if summary["queued"]:
        said += (
            f". {summary['queued']} rows wait for your answer: `decant review` shows them (or write lines "
            f"`id,label` to {decisions}); then run again"
        )
    if nothing_planted:
        said += ". No poison was simulated, so the oracle called every label right that it was shown; "
        said += "to look at your own data yourself, set verify.expert to person"
    return said


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers with so many decimals; anything else as it is."""
    return round(value, digits) if isinstance(value, float) else value


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
