"""`decant run` on a terminal: one line per stage, live; where the output goes to a file, one line when a stage ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.stages import StageFailed
from flows.watch import Event, State, watchers

STYLES: dict[State, str] = {
    "Waiting": "dim", "Running": "bold cyan", "Asking": "bold yellow", "Unchanged": "dim green", "Restored": "green",
    "Done": "green", "Failed": "bold red",
}  # fmt: skip


@dataclass
class Line:
    """What is known of one stage."""

    state: State = "Waiting"
    percent: float | None = None
    started: float = 0.0
    ended: float = 0.0
    error: StageFailed | None = None

    def words(self, now: float) -> str:
        """`Running 37 %  12 s, 20 s to go`, `Done 12.3 s`, ..."""
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
    """The stages of a run, kept up to date by the events that the run tells."""

    def __init__(self, stages: list[str], console: Console):
        self.lines = {stage: Line() for stage in stages}
        self.console = console
        self._width = max(map(len, stages), default=0)
        self._has_page = False

    def on_event(self, event: Event) -> None:
        line, now = self.lines[event.stage], time.monotonic()
        if event.state == "Running" and line.state != "Running":
            line.started = now
        line.state, line.percent, line.error, line.ended = event.state, event.percent, event.error, now
        if event.address:
            what = "for another browser" if self._has_page else "review page"
            self._has_page = True
            self.console.print(f"{what}: {event.address}", highlight=False, markup=False, soft_wrap=True)
        elif event.state != "Running" and not self.console.is_terminal:
            self.console.print(f"{event.stage:<{self._width}}  {line.words(now)}", highlight=False)

    @property
    def failures(self) -> dict[str, StageFailed]:
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
    """A board that follows the run inside the block."""
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
