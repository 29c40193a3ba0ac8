"""`decant explain ID`: one row's way through the stages, with its picture.

Reads only the row groups that hold the row. The truth of a simulation is shown where there is one; it decides nothing.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from decant.data.images import Images
from decant.data.tables import read_image_row, read_places, read_truth, read_verdicts
from decant.errors import DecantError
from decant.paths import DATA, EXPORT, PLACES, TRUTH
from decant.steps import STEPS

STAGES = ("ingest", "simulate", "purify_1", "purify_2", "verify", "detect")  # each writes the rows that it passes on
STEP_NAMES = {step.rows: step.name for step in STEPS}
JUDGES = {  # stage with verdicts: how its score reads; higher is more suspicious
    "purify_2": "its label reads from its noise by {score:.2f}",
    "verify": "{score:.2f} (trust {trust:.2f})",
    "detect": "{score:.2f}",
}
SIDE = 32  # characters; larger pictures are thinned out
RAMP = " .:-=+*#%@"
DASH = "–"


@dataclass(frozen=True)
class Step:
    """The row at one stage."""

    stage: str
    label: str
    score: str = ""
    verdict: str = ""
    reason: str = ""


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    row_id: int = arguments.id
    rows = {stage: row for stage in STAGES if (row := _row(stage, row_id)) is not None}
    if not rows:
        raise DecantError(_unknown(row_id))
    received = rows.get("simulate") or next(iter(rows.values()))
    places = read_places(PLACES)
    console.print(f"[bold]row {row_id}[/], from {escape(places[row_id])}", soft_wrap=True)
    _print_pictures(rows, console)
    console.print(_as_table(steps(row_id, rows)))
    for line in (*_truth(row_id, received), _end(rows)):
        console.print(line, soft_wrap=True)
    return 0


def _row(stage: str, row_id: int) -> Images | None:
    path = DATA / stage / "train.parquet"
    return read_image_row(path, row_id) if path.is_file() else None


def _unknown(row_id: int) -> str:
    path = DATA / "ingest" / "train.parquet"
    if not path.is_file():
        return "nothing was ingested yet; `decant run` first"
    return f"no row {row_id} in {path}; audit.csv in {EXPORT} lists the ids"


def steps(row_id: int, rows: dict[str, Images]) -> list[Step]:
    """What each stage that has run made of the row; the last step is the one that dropped it, if one did."""
    names = next(iter(rows.values())).info.class_names
    found = []
    for stage in STAGES:
        row = rows.get(stage)
        verdict = _verdict(stage, row_id)
        if row is None and verdict is None:
            continue
        label = names[int(row.labels[0])] if row is not None else DASH
        found.append(Step(stage, label, *(verdict or ())))
    return found


def _verdict(stage: str, row_id: int) -> tuple[str, str, str] | None:
    """(score, what was done, reason), or None when the stage judged no such row."""
    path = DATA / stage / "verdicts.parquet"
    if stage not in JUDGES or not path.is_file():
        return None
    verdicts = read_verdicts(path)
    mine = verdicts[verdicts["id"] == row_id]
    if mine.empty:
        return None
    verdict = mine.iloc[0]
    flagged = "flagged, " if verdict["flagged"] else ""
    score = JUDGES[stage].format(score=verdict["score"], trust=1 - verdict["score"])
    return score, f"{flagged}{verdict['action']}", str(verdict["reason"])


def _as_table(found: list[Step]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for head in ("stage", "label", "score", "verdict", "reason"):
        table.add_column(head, overflow="fold")
    for step in found:
        table.add_row(step.stage, step.label, step.score, step.verdict, step.reason)
    return table


def _truth(row_id: int, received: Images) -> list[str]:
    if not TRUTH.is_file():
        return []
    truth = read_truth(TRUTH)
    mine = truth[truth["id"] == row_id]
    names = received.info.class_names
    pairs = zip(mine["attack"], mine["original_label"], strict=True)
    planted = [f"{attack} (its true label: {names[int(label)]})" for attack, label in pairs]
    return [f"truth of the simulation: {'; '.join(planted) if planted else 'nothing was planted here'}"]


def _end(rows: dict[str, Images]) -> str:
    last = [stage for stage in STAGES if (DATA / stage / "train.parquet").is_file()][-1]
    files = f"{{{','.join(rows)}}}" if len(rows) > 1 else next(iter(rows))
    return f"in the end: {'kept' if last in rows else 'dropped'}; it is in {DATA}/{files}/train.parquet"


# ---------------------------------------------------------------------------------------------------------------------
# A picture in the terminal: two pixels per character, the upper one as its colour, the lower one as its background
# ---------------------------------------------------------------------------------------------------------------------


def _print_pictures(rows: dict[str, Images], console: Console) -> None:
    grid = Table.grid(padding=(0, 3))
    shown = [stage for stage in ("simulate", "purify_2") if stage in rows] or list(rows)[:1]
    in_colour = console.color_system is not None
    grid.add_row(*(picture(rows[stage].pixels[0], in_colour=in_colour) for stage in shown))
    grid.add_row(*(STEP_NAMES.get(f"{stage}/train.parquet", "as ingested") for stage in shown))
    console.print(grid)


def picture(pixels: np.ndarray, *, in_colour: bool) -> Text:
    """pixels: (height, width, channel) uint8. Without colours: one of ten characters for two pixels' brightness."""
    pixels = thinned(pixels)
    pixels = np.concatenate([pixels, np.zeros((len(pixels) % 2, *pixels.shape[1:]), np.uint8)])
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            if in_colour:
                text.append("▀", style=f"{_colour(top)} on {_colour(bottom)}")
            else:
                text.append(RAMP[int((top.mean() + bottom.mean()) / 2 * len(RAMP) / 256)])
        text.append("\n")
    text.right_crop(1)
    return text


def thinned(pixels: np.ndarray) -> np.ndarray:
    """At most SIDE pixels wide and high: every n-th row and column."""
    step = -(-max(pixels.shape[:2]) // SIDE)
    return pixels[::step, ::step]


def _colour(pixel: np.ndarray) -> str:
    red, green, blue = (int(value) for value in (np.repeat(pixel, 3) if len(pixel) == 1 else pixel[:3]))
    return f"rgb({red},{green},{blue})"
