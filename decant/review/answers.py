"""Appending answers to the file of decisions, so that neither a crash nor a second writer can lose one.

An answer is one line, on the disk before anyone is told that it was taken. Several pages may write to one file: each
holds a lock file beside it while it appends.
"""

import csv
import io
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from decant.files import replacing
from decant.labeltrust.decisions import DECISION_COLUMNS, Decision


def append(path: Path, decisions: list[Decision]) -> None:
    """Adds these lines; they are on the disk when this returns. A file that lacks some columns gets them first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(path):
        columns = _with_all_columns(path)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writerows(asdict(decision) | asdict(decision.asked) for decision in decisions)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)


def now() -> str:
    """The time in UTC, as it stands in the column `at`."""
    return datetime.now(UTC).isoformat("T", "seconds")


def lock_of(path: Path) -> FileLock:
    """The lock that a process holds while it writes to the file."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _with_all_columns(path: Path) -> list[str]:
    """Adds the missing columns at the end of the first line, ends an unfinished last line; returns the columns.

    All other lines stay as they are, also for Git, which keeps the lines of both sides.
    """
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    columns = header + [name for name in DECISION_COLUMNS if name not in header]
    if columns == header and text.endswith("\n"):
        return columns
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(line for line in lines if line)
        file.flush()
        os.fsync(file.fileno())
    return columns


def _sync_folder(folder: Path) -> None:
    """Makes sure that a file which is new or was replaced is found after a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
