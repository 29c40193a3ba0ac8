"""Events of a run (a stage starts, advances, ends) for those who show it: the terminal of `decant run`, or a test."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from flows.stages import OnLine, Slot, Stage, StageFailed, StageOutcome, bring_up_to_date

StageState = Literal["Waiting", "Running", "Asking", "Unchanged", "Restored", "Done", "Failed"]


@dataclass(frozen=True)
class Event:
    """What happened to a stage."""

    stage: str
    state: StageState
    percent: float | None = None
    """How far a running stage is, where it says so."""
    error: StageFailed | None = None
    """Why it failed."""
    address: str = ""
    """Of the page on which a person answers the stage's questions."""


watchers: list[Callable[[Event], None]] = []
"""Called with each event. One process works on one run, so that a list of the module is enough."""


def tell(event: Event) -> None:
    """Passes the event to all watchers."""
    for watcher in watchers:
        watcher(event)


def watched(stage: Stage, log: OnLine, show: Callable[[float], None], slot: Slot = nullcontext) -> StageOutcome:
    """Brings a stage up to date and tells the watchers. `log` gets the stage's lines, `show` its percentages.

    Raises: StageFailed.
    """

    shown: float | None = None

    def on_line(line: str) -> None:
        nonlocal shown
        percent = percent_of(line)
        if percent is None:
            log(line)
            return
        shown = percent
        tell(Event(stage.name, "Running", percent))
        show(percent)

    tell(Event(stage.name, "Running"))
    try:
        outcome = bring_up_to_date(stage, on_line, slot)
    except StageFailed as error:
        tell(Event(stage.name, "Failed", error=error))
        raise
    if outcome == "Done" and shown not in (None, 100.0):  # it needed fewer steps than it had planned
        show(100.0)
    tell(Event(stage.name, outcome))
    return outcome


def percent_of(line: str) -> float | None:
    """37.5 of a stage's line ``::progress 37.5``; None of any other line."""
    word, _, number = line.partition(" ")
    try:
        return float(number) if word == "::progress" else None
    except ValueError:
        return None
