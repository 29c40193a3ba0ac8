"""Errors that a person can mend. The message is one line: what is wrong, where, and what to do about it.

DecantError
├── SettingsError   a parameter is unknown, of the wrong kind or out of range
├── SourceError     the data that the user named can't be used
├── TableError      a Parquet file is not the table that it should be
└── StageError      a stage can't do its work with what it was given
"""

import difflib
from collections.abc import Iterable


class DecantError(Exception):
    """Base of all errors that are the input's fault, not the program's. Command lines exit with code 2."""


class SettingsError(DecantError):
    """A parameter is unknown, of the wrong kind or out of range."""


class SourceError(DecantError):
    """The data that the user named can't be used."""


class TableError(DecantError):
    """A Parquet file is not the table that it should be; names file, column, expected and found."""


class StageError(DecantError):
    """A stage can't do its work with what it was given."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`. Did you mean 'epochs'?`, the end of a message, where a known word is close to a misspelt one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)  # `rnu` means `run`, `extra` not `train`
    return f". Did you mean {close[0]!r}?" if close else ""
