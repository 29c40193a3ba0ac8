"""Which processes run a stage right now, by DVC's own list of the files that they read and write.

DVC keeps the list in `.dvc/tmp/rwlock`: {"write": {path: {"pid", "cmd"}}, "read": {path: [{"pid", "cmd"}, ...]}}. An
entry stays from before the stage's command starts until DVC has hashed what it wrote. It is read here as plain JSON, so
that the review page needs no DVC.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from decant.errors import StageError

LOCKS = Path(".dvc/tmp/rwlock")
ATTEMPTS = 50  # to read the list, 20 ms apart: DVC rewrites it in place


def is_being_written(folder: Path) -> bool:
    """Whether DVC runs the stage that writes this folder, or is still hashing what the stage wrote."""
    return bool(processes_on([folder], readers=False))


def processes_on(files: Iterable[Path], *, readers: bool = True) -> list[int]:
    """Ids of the living processes that work on these files, or on a folder above or below one of them.

    readers: also those that only read them.

    Raises: StageError when the list is damaged.
    """
    wanted = [file.resolve() for file in files]
    entries = [(path, writer) for path, writer in _listed("write").items()]
    if readers:
        entries += [(path, reader) for path, readers in _listed("read").items() for reader in readers]
    found = {int(process["pid"]) for path, process in entries if _touches(Path(path).resolve(), wanted)}
    return sorted(process for process in found if _is_alive(process))


def _listed(kind: str) -> dict[str, Any]:
    for _ in range(ATTEMPTS):
        try:
            return json.loads(LOCKS.read_text(encoding="utf-8")).get(kind, {})
        except FileNotFoundError:
            return {}
        except ValueError:  # it is being rewritten at this moment
            time.sleep(0.02)
    raise StageError(f"{LOCKS}: DVC's list of running stages is damaged; delete it when no stage runs")


def _touches(path: Path, files: list[Path]) -> bool:
    return any(path.is_relative_to(file) or file.is_relative_to(path) for file in files)


def _is_alive(process: int) -> bool:
    """A stage that was killed stays in DVC's list."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
