"""verify: judge every label, with an expert's help, and drop or correct the rows whose label it can't trust.

The method is LabelTrust, or any label check (``verify.method``).

The expert is the simulation's truth (``verify.expert: oracle``: for experiments, and the only use of the truth here) or
a person's answers in a CSV (``file``, ``person``). Rows that a person has yet to answer are in queue.csv; the stage
doesn't wait for them (with ``person`` the flow does, and runs it again).
"""

from pathlib import Path

from decant.data.tables import apply_verdicts, read_digests, read_images, read_truth, write_images, write_verdicts
from decant.files import write_csv
from decant.label_checks.verification import steps_of
from decant.label_checks.verification import verify as verify_labels
from decant.labeltrust.experts import FileExpert, Oracle
from decant.labeltrust.outcome import switched_off
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.summary import summary_of
from decant.models.embeddings import read_embeddings
from decant.runtime import Progress, be_deterministic
from decant.summaries import VerifySummary

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
    write_images(out / "train.parquet", apply_verdicts(rows, outcome.verdicts))
    write_verdicts(out / "verdicts.parquet", outcome.verdicts)
    if outcome.scorer is not None:
        outcome.scorer.save(out / "scorer.safetensors")
    write_csv(out / "reviews.csv", outcome.reviews)
    queue = outcome.queue.assign(picture=outcome.queue["id"].map(pictures))
    write_csv(out / "queue.csv", queue.rename(columns={"answer": "label"}).reindex(columns=QUEUE))
    return summary_of(outcome, verify, decisions=decisions, outdated=outdated, nothing_planted=nothing_planted)
