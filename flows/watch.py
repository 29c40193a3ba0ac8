"""What a run tells about its stages while it works, for whoever shows it: `decant run`'s terminal, or a test."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from flows.stages import OnLine, Outcome, Slot, Stage, StageFailed, bring_up_to_date

State = Literal["Waiting", "Running", "Asking", "Unchanged", "Restored", "Done", "Failed"]


@dataclass(frozen=True)
class Event:
    stage: str
    state: State
    percent: float | None = None
    """How far a running stage is, where it says so."""
    error: StageFailed | None = None
    """Why it failed."""
    address: str = ""
    """Of the page on which a person answers the stage's questions."""


watchers: list[Callable[[Event], None]] = []
"""One process works on one run, so a list is enough."""


def tell(event: Event) -> None:
    for watcher in watchers:
        watcher(event)


def watched(stage: Stage, log: OnLine, show: Callable[[float], None], slot: Slot = nullcontext) -> Outcome:
    """`bring_up_to_date`, told to the watchers. `log` gets the stage's lines, `show` its percentages.

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
    if outcome == "Done" and shown not in (None, 100.0):  # less was to be done than the stage had planned for
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
