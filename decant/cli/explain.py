"""`decant explain ID`: print what each stage found out about one row and did with it, and its picture.

Only the row groups that hold the row are read. Where poison was planted for an experiment, the truth about the row is
shown; no stage knows it.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from decant.data.images import Images
from decant.data.tables import read_image_row, read_places, read_truth, read_verdicts
from decant.errors import DecantError
from decant.paths import EXPORT, INGESTED, PLACES, TRUTH, train_rows, verdicts_file
from decant.steps import CHECKS, ROW_STAGES, STEPS

STEP_NAMES = {step.stage: step.name for step in STEPS}
SCORES = {check.stage: check.score for check in CHECKS}
SIDE = 32  # characters at most of a picture
RAMP = " .:-=+*#%@"  # from dark to bright, where the terminal has no colours
DASH = "–"


@dataclass(frozen=True)
class StageResult:
    """What one stage made of the row, in words."""

    stage: str
    label: str
    score: str = ""
    verdict: str = ""
    reason: str = ""


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    row_id: int = arguments.id
    rows = {stage: row for stage in ROW_STAGES if (row := _row(stage, row_id)) is not None}
    if not rows:
        raise DecantError(_unknown(row_id))
    received = rows.get("simulate") or next(iter(rows.values()))
    places = read_places(PLACES)
    console.print(f"[bold]row {row_id}[/], from {escape(places[row_id])}", soft_wrap=True)
    _print_pictures(rows, console)
    console.print(_as_table(stage_results(row_id, rows)))
    for line in (*_truth(row_id, received), _end(rows)):
        console.print(line, soft_wrap=True)
    return 0


def _row(stage: str, row_id: int) -> Images | None:
    path = train_rows(stage)
    return read_image_row(path, row_id) if path.is_file() else None


def _unknown(row_id: int) -> str:
    if not INGESTED.is_file():
        return "no data yet; `decant run` reads it"
    return f"no row {row_id} in {INGESTED}; audit.csv in {EXPORT} lists the ids"


def stage_results(row_id: int, rows: dict[str, Images]) -> list[StageResult]:
    """The results of the stages that have run. The last is that of the stage that dropped the row, if one did."""
    names = next(iter(rows.values())).info.class_names
    found = []
    for stage in ROW_STAGES:
        row = rows.get(stage)
        verdict = _verdict(stage, row_id)
        if row is None and verdict is None:
            continue
        label = names[int(row.labels[0])] if row is not None else DASH
        found.append(StageResult(stage, label, *(verdict or ())))
    return found


def _verdict(stage: str, row_id: int) -> tuple[str, str, str] | None:
    """(score, action, reason), or None where the stage has no verdict on the row."""
    path = verdicts_file(stage)
    if stage not in SCORES or not path.is_file():
        return None
    verdicts = read_verdicts(path)
    mine = verdicts[verdicts["id"] == row_id]
    if mine.empty:
        return None
    verdict = mine.iloc[0]
    flagged = "flagged, " if verdict["flagged"] else ""
    return f"{verdict['score']:.2f} ({SCORES[stage]})", f"{flagged}{verdict['action']}", str(verdict["reason"])


def _as_table(found: list[StageResult]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for head in ("stage", "label", "score (high: suspicious)", "verdict", "reason"):
        table.add_column(head, overflow="fold")
    for result in found:
        table.add_row(result.stage, result.label, result.score, result.verdict, result.reason)
    return table


def _truth(row_id: int, received: Images) -> list[str]:
    if not TRUTH.is_file():
        return []
    truth = read_truth(TRUTH)
    mine = truth[truth["id"] == row_id]
    names = received.info.class_names
    pairs = zip(mine["attack"], mine["original_label"], strict=True)
    planted = [f"{attack} (its true label: {names[int(label)]})" for attack, label in pairs]
    return [f"truth of the simulation: {'; '.join(planted) if planted else 'nothing was planted in this row'}"]


def _end(rows: dict[str, Images]) -> str:
    last = [stage for stage in ROW_STAGES if train_rows(stage).is_file()][-1]
    files = f"{{{','.join(rows)}}}" if len(rows) > 1 else next(iter(rows))
    return f"outcome: {'kept' if last in rows else 'dropped'}; the row is in {train_rows(files)}"


# ---------------------------------------------------------------------------------------------------------------------
# A picture in the terminal. Each character is two pixels: its colour is the upper one, its background the lower one
# ---------------------------------------------------------------------------------------------------------------------


def _print_pictures(rows: dict[str, Images], console: Console) -> None:
    grid = Table.grid(padding=(0, 3))
    shown = [stage for stage in ("simulate", "purify_2") if stage in rows] or list(rows)[:1]
    in_colour = console.color_system is not None
    grid.add_row(*(picture(rows[stage].pixels[0], in_colour=in_colour) for stage in shown))
    grid.add_row(*(STEP_NAMES.get(stage, "as ingested") for stage in shown))
    console.print(grid)


def picture(pixels: UInt8[np.ndarray, "h w c"], *, in_colour: bool) -> Text:
    """The picture as text. Without colours: one of ten characters for the brightness of two pixels."""
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


def thinned(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Every n-th row and column, so that the picture is at most SIDE pixels wide and high."""
    step = -(-max(pixels.shape[:2]) // SIDE)
    return pixels[::step, ::step]


def _colour(pixel: np.ndarray) -> str:
    red, green, blue = (int(value) for value in (np.repeat(pixel, 3) if len(pixel) == 1 else pixel[:3]))
    return f"rgb({red},{green},{blue})"
