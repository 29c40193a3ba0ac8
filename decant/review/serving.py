"""`decant review`: serve the page on this machine until Ctrl-C or, with `--until-answered`, until all is answered."""

import argparse
import threading
import time
import webbrowser
from contextlib import suppress

import uvicorn
from rich.console import Console

from decant.errors import DecantError
from decant.review.app import create_app
from decant.review.gate import Gate
from decant.review.store import Closed, Store, open_store
from decant.review.waiting import GRACE, verify_settings
from decant.stage_locks import is_being_written
from decant.web.sockets import listening

POLL_SECONDS = 0.5  # between two looks whether all is answered
STOPPED = 130
"""Exit code of a page that was ended before all rows were answered, where that was asked for."""


def serve(arguments: argparse.Namespace) -> int:
    """Serves the page until it is ended; returns the exit code.

    Raises: DecantError when the port is taken, or `verify` has not asked anything yet.
    """
    console, store = Console(highlight=False), open_store(arguments.expert)
    if not arguments.for_run and (nothing := why_nothing(store)):
        console.print(nothing, soft_wrap=True)
        print_disputes(store, console)
        return 0
    with listening("127.0.0.1", arguments.port, otherwise="leave --port out to take a free one") as listener:

        def announce(address: str) -> None:
            console.print(f"for another browser: {address}", style="dim", soft_wrap=True, markup=False)

        gate = Gate(listener.getsockname()[1], announce)
        server = server_of(store, gate, for_run=arguments.for_run)
        console.print(f"review page: {gate.address}", soft_wrap=True, markup=False)
        if arguments.open:
            webbrowser.open(gate.address)
        if arguments.until_answered:
            threading.Thread(target=end_when_answered, args=(server, store), daemon=True).start()
        with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends it
            server.run(sockets=[listener])
    if arguments.for_run:
        return 0
    return print_outcome(store, console, must_be_answered=arguments.until_answered)


def why_nothing(store: Store) -> str:
    """Why there is nothing to answer; empty where there is, or may be soon.

    Rows that are all answered can still be looked at, and while `verify` runs the page waits for its questions.

    Raises: DecantError when `verify` has not asked anything yet.
    """
    try:
        if store.questions():
            return ""
    except Closed as closed:
        if is_being_written(store.queue_path.parent):
            return ""
        raise DecantError("no rows to review yet; `verify` asks for them: decant run verify") from closed
    if verify_settings().expert == "oracle":
        return (
            "no row waits, because the expert is simulated; to answer yourself: decant run --set verify.expert=person"
        )
    return "no row waits for an answer; after a change of data or parameters, decant run may ask again"


def server_of(store: Store, gate: Gate, *, for_run: bool) -> uvicorn.Server:
    app = create_app(store, gate, for_run=for_run, budget=verify_settings().budget)
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False,
        )
    )  # fmt: skip


def end_when_answered(server: uvicorn.Server, store: Store) -> None:
    """Ends the server once nothing has been open for GRACE seconds."""
    answered_since = None
    while not server.should_exit:
        try:
            is_open = store.progress().open > 0
        except (Closed, DecantError):
            is_open = True
        answered_since = None if is_open else answered_since or time.monotonic()
        server.should_exit = answered_since is not None and time.monotonic() - answered_since >= GRACE
        time.sleep(POLL_SECONDS)


def print_outcome(store: Store, console: Console, *, must_be_answered: bool) -> int:
    """Prints how many rows are answered and what to do next; returns the exit code."""
    try:
        progress = store.progress()
    except Closed:
        console.print(
            "the stage `verify` is running on your answers; if it asks for more, decant review shows the rows"
        )
        return STOPPED if must_be_answered else 0
    print_disputes(store, console)
    if progress.open:
        console.print(
            f"{progress.answered} of {progress.asked} rows answered in all; every answer is saved. "
            "decant review continues, decant run uses the answers so far",
            soft_wrap=True,
        )
        return STOPPED if must_be_answered else 0
    console.print(why_nothing(store) or f"all {progress.round_asked} rows answered; next: decant run", soft_wrap=True)
    return 0


def print_disputes(store: Store, console: Console) -> None:
    """Prints the rows on which the experts disagree, and who says what."""
    try:
        disputes = store.read().disputes
    except Closed:
        return
    for row, said in disputes.items():
        words = ", ".join(f"{expert or 'unnamed'} says {label}" for expert, label in said.items())
        console.print(f"row {row} is disputed: {words}", style="yellow", markup=False, soft_wrap=True)
