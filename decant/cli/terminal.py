"""Show a run on the terminal: a live line per stage (in a file: a line when one ends), and the tables of its result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from decant.report.table import CLEANER_HEADS, STEP_HEADS, ResultTable, Row
from flows.stages import StageFailed
from flows.watch import Event, StageState, watchers

STYLES: dict[StageState, str] = {
    "Waiting": "dim", "Running": "bold cyan", "Asking": "bold yellow", "Unchanged": "dim green", "Restored": "green",
    "Done": "green", "Failed": "bold red",
}  # fmt: skip

WITHOUT_ANSWERS = "to go on with the answers so far: stop the run (Ctrl-C), then decant run --set verify.expert=file"


@dataclass
class StageLine:
    """What the terminal shows of one stage."""

    state: StageState = "Waiting"
    percent: float | None = None
    started: float = 0.0
    ended: float = 0.0
    error: StageFailed | None = None

    def words(self, now: float) -> str:
        """Its state in words: `Running 37 %  12 s, 20 s to go`, `Done 12.3 s`, ..."""
        if self.state == "Running":
            elapsed = now - self.started
            if self.percent is None or self.percent < 1:
                return f"Running  {elapsed:.0f} s"
            remaining = elapsed * (100 - self.percent) / self.percent
            return f"Running {self.percent:.0f} %  {elapsed:.0f} s, {remaining:.0f} s to go"
        if self.state in ("Done", "Restored", "Failed"):
            return f"{self.state} {self.ended - self.started:.1f} s"
        return "waits for your answers" if self.state == "Asking" else self.state


class Board:
    """The stages of a run, kept up to date by the run's events."""

    def __init__(self, stages: list[str], console: Console):
        self.lines = {stage: StageLine() for stage in stages}
        self.console = console
        self._width = max(map(len, stages), default=0)
        self._has_page = False

    def on_event(self, event: Event) -> None:
        """Takes in an event; prints a line where there is no live display."""
        line, now = self.lines[event.stage], time.monotonic()
        if event.state == "Running" and line.state != "Running":
            line.started = now
        line.state, line.percent, line.error, line.ended = event.state, event.percent, event.error, now
        if event.address:
            self._tell_address(event.address)
        elif event.state != "Running" and not self.console.is_terminal:
            self.console.print(f"{event.stage:<{self._width}}  {line.words(now)}", highlight=False)

    def _tell_address(self, address: str) -> None:
        what = "for another browser" if self._has_page else "review page"
        self.console.print(f"{what}: {address}", highlight=False, markup=False, soft_wrap=True)
        if not self._has_page:
            self.console.print(WITHOUT_ANSWERS, style="dim", highlight=False, soft_wrap=True)
        self._has_page = True

    @property
    def failures(self) -> dict[str, StageFailed]:
        """The stages that failed, with their errors."""
        return {stage: line.error for stage, line in self.lines.items() if line.error}

    def __rich__(self) -> Table:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for stage, line in self.lines.items():
            bar = ProgressBar(completed=line.percent or 0, width=24) if line.state == "Running" else ""
            table.add_row(stage, Text(line.words(now), style=STYLES[line.state]), bar)
        return table


@contextmanager
def shown(stages: list[str], console: Console) -> Iterator[Board]:
    """Shows the run that happens inside the block."""
    board = Board(stages, console)
    watchers.append(board.on_event)
    try:
        if console.is_terminal:
            with Live(board, console=console, refresh_per_second=4):
                yield board
        else:
            yield board
    finally:
        watchers.remove(board.on_event)


def result_tables(result: ResultTable) -> list[Table]:
    """The tables of a result: models and what they reach, stages and what they flagged; none without rows."""
    pairs = [(STEP_HEADS, result.steps), (CLEANER_HEADS, result.cleaners)]
    return [_table(heads, rows) for heads, rows in pairs if rows]


def _table(heads: Row, rows: list[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
