"""Read what `verify` writes for the review page: the rows that it asks about, and those that were answered before."""

from dataclasses import dataclass
from pathlib import Path

from decant.errors import StageError
from decant.files import open_csv
from decant.labeltrust.decisions import Asked


@dataclass(frozen=True)
class Question:
    """A row of the queue: whether its label is right, `verify` asks the expert."""

    id: int
    given: str
    suggested: str
    """The class that `verify` finds likeliest; blank in the first round, when trust is None."""
    trust: float | None
    round: int
    rows: int | None
    """How many rows the round asks about in all."""
    why: str
    """The reason for asking, as `verify` words it."""
    picture: str
    """Names the row's pixels as received (`decant.data.tables.read_digests`); answers carry it."""
    like_given: tuple[int, ...]
    """Ids of the nearest references of the given class."""
    like_suggested: tuple[int, ...]

    @property
    def asked(self) -> Asked:
        """How the row was asked about, as an answer to it records that."""
        return Asked(self.round, self.rows, self.why, self.trust, self.picture)


def read_queue(path: Path) -> dict[int, Question]:
    """The questions by row id. Columns that are missing or blank, as an older `verify` wrote them, are no fault."""
    with open_csv(path) as reader:
        rows = list(reader)
    try:
        return {int(row["id"]): _question(row) for row in rows}
    except (KeyError, ValueError) as error:
        raise StageError(f"{path}: not the queue that `verify` writes ({error}); run it again: decant run") from error


def _question(row: dict[str, str]) -> Question:
    def text(column: str) -> str:
        return (row.get(column) or "").strip()

    def ids(column: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text(column).split())

    return Question(
        id=int(row["id"]),
        given=row["given"],
        suggested=text("suggested"),
        trust=float(text("trust")) if text("trust") else None,
        round=int(float(text("round") or 0)),
        rows=int(float(text("rows"))) if text("rows") else None,
        why=text("why"),
        picture=text("picture"),
        like_given=ids("like_given"),
        like_suggested=ids("like_suggested"),
    )


def read_rounds(path: Path) -> list[int]:
    """The round of every row that the expert has answered and `verify` has taken in."""
    if not path.is_file():
        return []
    with open_csv(path) as reader:
        return [int(float(row.get("round") or 0)) for row in reader]
