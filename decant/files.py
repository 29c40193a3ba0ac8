"""Files that are either whole or not there: written under a temporary name, then renamed."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.errors import StageError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; removed when the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise StageError(f"{path.parent}: can't write there ({error.strerror}); free it or choose another") from error
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise StageError(f"{path}: can't be written ({error.strerror}); choose another name") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_csv(path: Path) -> Iterator["csv.DictReader[str]"]:
    """A CSV in UTF-8, with or without the mark that spreadsheets put before it.

    Raises: StageError, one line, when it is something else.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except OSError as error:
        raise StageError(f"{path}: can't be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{path}: not a CSV in UTF-8 ({error}); from a spreadsheet, save it as CSV UTF-8") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, frame: "pd.DataFrame", *, float_format: str | None = None) -> None:
    """Writes a CSV without the frame's index; the same bytes on every system."""
    write_text(path, frame.to_csv(index=False, float_format=float_format, lineterminator="\n"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, so that the same value gives the same bytes. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
