"""Let a run wait for a person (`verify.expert: person`): start the review page, and say when the run may go on.

The page is a process in a group of its own, started at the first open question and ended with the run. It stays over
all rounds, so that its address and the browser's tab stay valid. Nothing here knows Prefect.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from decant import params
from decant.errors import DecantError
from decant.labeltrust.settings import VerifySettings
from decant.processes import output, process_group
from decant.review.store import Closed, Store, open_store

STAGE = "verify"
PATIENCE = 24 * 3600.0  # seconds; then the run goes on with the answers that are on file
GRACE = 3.0  # seconds after the last answer in which it can be undone
LOOK = 2.0  # seconds between two looks whether somebody has resumed the run


def verify_settings() -> VerifySettings:
    """The block `verify` of params.yaml. Raises SettingsError."""
    found = params.settings()[STAGE]
    assert isinstance(found, VerifySettings)
    return found


def open_questions() -> int:
    """Rows that wait for a person's answer; 0 unless `verify.expert` is `person`."""
    if verify_settings().expert != "person":
        return 0
    try:
        return open_store().progress().open
    except Closed:
        return 0


class ReviewPage:
    """The review page of a run. `on_address` gets its address, and a new one when a browser has used the last."""

    def __init__(self, on_address: Callable[[str], None]):
        self._on_address = on_address
        self._stack = ExitStack()
        self._lines: Iterator[str] | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait(self, go_on: Callable[[], bool] = lambda: False) -> bool:
        """Waits until every question is answered (True), or `go_on` says so or PATIENCE is over (False).

        Raises: DecantError when the page ends by itself.
        """
        answered_since, looked, last = None, time.monotonic(), ""
        deadline = looked + PATIENCE
        for line in self._output():
            now = time.monotonic()
            if line:
                last = line
                self._tell(line)
            answered_since = None if self._is_open() else answered_since or now
            if answered_since is not None and now - answered_since >= GRACE:
                return True
            if now - looked >= LOOK:
                looked = now
                if go_on() or now > deadline:
                    return False
        raise DecantError(f"the review page has ended: {last}")

    def _output(self) -> Iterator[str]:
        if self._lines is None:
            command = [sys.executable, "-m", "decant.cli.main", "review", "--for-run"]
            self._lines = output(self._stack.enter_context(process_group(command)))
        return self._lines

    def _tell(self, line: str) -> None:
        _, _, address = line.partition(": ")
        if address.startswith("http://127.0.0.1:"):
            self._on_address(address.strip())

    def _is_open(self) -> bool:
        try:
            self._store = self._store or open_store()
            return self._store.progress().open > 0
        except Closed:
            return False
        except DecantError:  # a mistake in the file of decisions, which the page shows until it is mended
            return True
