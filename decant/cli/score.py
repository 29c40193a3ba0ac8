"""`decant score`: score the labels that a model, or anyone, gave to pictures; write a CSV and print a summary.

Pictures are decoded and scored in batches: memory holds their class scores, not their pixels.
"""

import argparse
import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from decant.data.decode import Rules
from decant.data.inputs import InputPictures, open_pictures, with_labels
from decant.errors import DecantError
from decant.files import write_text
from decant.labeltrust.prior import Prior, parse_prior

if TYPE_CHECKING:
    from decant.labeltrust.scorer import Judged, TrustScorer

COLUMNS = ("id", "file", "label", "trust", "suggested", "suggested_trust", "status")
BARS = "▁▂▃▄▅▆▇█"
BINS = 30
MOST_DOUBTED = 5  # pairs of given and suggested class in the summary


@dataclass(frozen=True)
class Scored:
    """All rows of the pictures, with their scores."""

    pictures: InputPictures
    class_names: tuple[str, ...]
    judged: "Judged"
    status: Shaped[np.ndarray, " n"]
    """`trusted`, `doubtful`, or why the label was not judged; dtype object."""


def main(arguments: argparse.Namespace) -> int:
    prior = parse_prior(arguments.prior)
    if not 0 <= arguments.threshold <= 1:
        raise DecantError(f"--threshold: a trust from 0 to 1 expected, {arguments.threshold:g} found")
    if arguments.out.is_dir():
        raise DecantError(f"--out {arguments.out}: a file expected, this is a folder")
    from decant.labeltrust.scorer import TrustScorer

    scorer = TrustScorer.load(arguments.scorer)
    pictures = open_pictures(arguments.images, scorer.class_names)
    if arguments.labels is not None:
        pictures = with_labels(pictures, arguments.labels, scorer.class_names)
    if (pictures.labels < 0).all():
        if arguments.labels is not None:
            raise DecantError(f"{arguments.labels}: the label of one picture at least expected, none found")
        fault = next(iter(pictures.faults.values()), "give predictions with --labels predictions.csv")
        raise DecantError(f"{arguments.images}: no picture has a label; {fault.removeprefix('no label: ')}")
    scored = score(scorer, pictures, prior, arguments.threshold)
    write_text(arguments.out, as_csv(scored))
    console = Console(highlight=False)
    console.print(summary(scored, arguments.threshold))
    console.print(f"trust 0 {sparkline(scored.judged.trust)} 1")
    console.print(f"{escape(str(arguments.out))}: {len(pictures):,} rows")
    return 0


def score(scorer: "TrustScorer", pictures: InputPictures, prior: Prior, threshold: float) -> Scored:
    """Scores every picture that has a label; `threshold`: a lower trust is doubtful."""
    labels, status = pictures.labels, np.full(len(pictures), "trusted", object)
    has_label = labels >= 0
    status[~has_label] = "no label"
    for row, fault in pictures.faults.items():
        status[row] = fault
    scores = np.zeros((len(pictures), len(scorer.judged)), np.float32)
    read = np.zeros(len(pictures), bool)
    height, width, channels = scorer.shape
    rules = Rules(height, width, 1 if channels == 1 else 3)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("scored", total=int(has_label.sum()))
        for part in pictures.decoded(rules, np.flatnonzero(has_label)):
            scores[part.rows], read[part.rows] = scorer.class_scores(part.pixels), True
            for row, reason in part.rejected:
                status[row] = f"not read: {reason}"
            progress.advance(bar, len(part.rows) + len(part.rejected))
    judged = scorer.judge(scores, np.where(read, labels, -1), prior=prior)
    without = read & np.isnan(judged.trust)
    names = np.array(scorer.class_names, object)
    status[without] = "not judged: no references of " + names[labels[without]]
    status[judged.trust < threshold] = "doubtful"
    return Scored(pictures, scorer.class_names, judged, status)


def as_csv(scored: Scored) -> str:
    """The text of the CSV: one line per picture, in their order; unknown values are blank."""
    names, judged, pictures = scored.class_names, scored.judged, scored.pictures
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, row_id in enumerate(pictures.ids.tolist()):
        label, read = pictures.labels[row], not scored.status[row].startswith(("no label", "not read"))
        trust = "" if np.isnan(judged.trust[row]) else f"{judged.trust[row]:.6f}"
        suggestion = (names[judged.suggested[row]], f"{judged.suggested_trust[row]:.6f}") if read else ("", "")
        writer.writerow(
            (row_id, pictures.file_of(row), names[label] if label >= 0 else "", trust, *suggestion, scored.status[row])
        )
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------------------------------


def summary(scored: Scored, threshold: float) -> Table:
    """A table of how many rows have which status, and of the classes that are most often doubted."""
    n, status = len(scored.status), scored.status
    lines = [(f"trusted (trust {threshold:g} or more)", int((status == "trusted").sum()))]
    lines.append(("doubtful", int((status == "doubtful").sum())))
    lines += [(f"  {given}, looks like {suggested}", rows) for given, suggested, rows in most_doubted(scored)]
    for kind in ("not judged", "not read", "no label"):
        if rows := sum(text.startswith(kind) for text in status):
            lines.append((kind, rows))
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for words, rows in lines:
        table.add_row(escape(words), f"{rows:,}", f"{100 * rows / n:.1f} %")
    return table


def sparkline(trust: Float[np.ndarray, " n"]) -> str:
    """A histogram of trust from 0 to 1 in one line; heights are logarithmic, so that rare values show, too."""
    counts = np.histogram(trust[~np.isnan(trust)], BINS, (0, 1))[0]
    heights = np.log1p(counts) / max(1e-9, np.log1p(counts.max(initial=0))) * (len(BARS) - 1)
    return "".join(BARS[int(np.ceil(height))] for height in heights)


def most_doubted(scored: Scored) -> list[tuple[str, str, int]]:
    """The commonest (given class, suggested class, number of rows) among the doubtful rows, the first most common."""
    rows = (scored.status == "doubtful") & (scored.judged.suggested != scored.pictures.labels)
    pairs = np.stack([scored.pictures.labels[rows], scored.judged.suggested[rows]], 1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    names, order = scored.class_names, np.argsort(-counts, kind="stable")[:MOST_DOUBTED]
    return [(names[kinds[i, 0]], names[kinds[i, 1]], int(counts[i])) for i in order]
