"""`decant run`: settles the parameters, finds or starts the Prefect server, runs the flow, shows what comes of it."""

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from types import FrameType

from rich.console import Console

from decant import fingerprints, params
from decant.cli import terminal
from decant.data.sources import check_name
from decant.errors import DecantError, SourceError
from decant.paths import REPORT
from decant.report import table
from decant.review.waiting import STAGE, ReviewPage, open_questions
from flows import server
from flows.stages import Stage, StageFailed, pipeline
from flows.watch import Event, tell, watched

OK, STAGE_FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    fingerprints.check()
    stages = asked_for(arguments.stages)
    if arguments.set:
        params.edit_file(arguments.set)
    else:
        params.check_file()
    if planted := params.planted_in_own_data():
        console.print(
            f"an experiment: {', '.join(planted)} will be planted into this data, to measure what Decant finds; "
            "to clean the data as it is: decant run --set 'simulate.attacks=[]'",
            style="yellow",
            soft_wrap=True,
        )
    started = time.monotonic()
    with ended_by_exceptions():
        if not arguments.no_server:
            server.ensure_server(console.print)
        with terminal.shown([stage.name for stage in stages], console) as board:
            trouble = without_server(stages, console) if arguments.no_server else in_prefect(arguments.stages or None)
    if board.failures or trouble:
        return explain_failure(board, trouble, console)
    show_result(board, time.monotonic() - started, console)
    return OK


def asked_for(words: list[str]) -> list[Stage]:
    """The stages with these names and what they need; all, where none is named.

    Raises: DecantError for a word that is no stage; where it is data, with the way to clean it.
    """
    try:
        return pipeline(words or None)
    except DecantError:
        for word in filter(is_data, words):
            command = f"decant run --set ingest.source={quote(word)}"
            if params.settings()["simulate"].attacks:
                command += " --set 'simulate.attacks=[]'"
            raise DecantError(f"{word}: not a stage; to clean this data: {command}") from None
        raise


def is_data(word: str) -> bool:
    """Whether `ingest.source` could take it; a path may lead nowhere."""
    try:
        check_name(word)
    except SourceError:
        return "/" in word
    return True


@contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, so that the running stage is stopped with us."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_prefect(targets: list[str] | None) -> str:
    """Runs the flow in this process. Returns what went wrong, empty if nothing did."""
    os.environ.setdefault(
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL"
    )  # the board shows it; Prefect's page too
    from httpx import HTTPError

    from flows.clean import clean

    try:
        state = clean(targets, return_state=True)
    except HTTPError:  # Prefect has tried again for minutes
        return "the Prefect server no longer answers; finished stages are kept, `decant run` goes on from there"
    return "" if state.is_completed() else state.message or state.name or "the flow did not complete"


def without_server(stages: list[Stage], console: Console) -> str:
    """The same work with no Prefect at all: nothing to watch but the terminal, no retries, no GPU limit."""
    failed: set[str] = set()
    with ReviewPage(lambda address: tell(Event(STAGE, "Asking", address=address))) as page:
        for stage in stages:
            if failed.intersection(stage.upstream) or not done(stage, page, console):
                failed.add(stage.name)
    return ""


def done(stage: Stage, page: ReviewPage, console: Console) -> bool:
    """Brings a stage up to date, as often as a person answers its questions. False when it failed."""
    goes_on = False
    while True:
        try:
            watched(stage, log=lambda line: None, show=lambda percent: None)
        except StageFailed:
            return False
        waiting = open_questions() if stage.name == STAGE and not goes_on else 0
        if waiting and not console.is_terminal:
            console.print(f"{waiting} rows wait for an answer (decant review); the run goes on without them")
        if not (waiting and console.is_terminal):
            return True
        goes_on = not page.wait()


def explain_failure(board: terminal.Board, trouble: str, console: Console) -> int:
    """Says which stage failed and why; the exit code tells bad input from a failed stage."""
    if not board.failures:
        console.print(f"decant: {trouble}", markup=False, soft_wrap=True)
        return STAGE_FAILED
    error = next(iter(board.failures.values()))
    console.print(f"\n{error}", style="bold red", markup=False, soft_wrap=True)
    if error.code == BAD_INPUT:
        return BAD_INPUT
    for line in error.lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    not_run = [stage for stage, line in board.lines.items() if line.state == "Waiting"]
    if not_run:
        console.print(f"not run: {', '.join(not_run)}", style="dim")
    return STAGE_FAILED


def show_result(board: terminal.Board, seconds: float, console: Console) -> None:
    """Prints the result table, and how many stages ran."""
    result = table.read_result() if "evaluate" in board.lines else None
    if result:
        console.print()
        console.print(*terminal.result_tables(result), sep="\n")
        for note in result.notes:
            console.print(note)
    ran = sum(line.state != "Unchanged" for line in board.lines.values())
    console.print(
        f"{ran} of {len(board.lines)} stages ran, {seconds:.0f} s" if ran else f"nothing to do, {seconds:.0f} s"
    )
    if REPORT.is_file():
        console.print(f"report: {REPORT}   (decant report --open)")
