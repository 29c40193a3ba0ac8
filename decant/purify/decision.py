"""Which rows get purified pixels, and their verdicts: what the stage `purify_2` decides once all rows are purified."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from decant.data.images import Images
from decant.data.tables import ImagesWriter, count_rows, iter_images
from decant.purify.gate import RowScorer, ShortcutTest, probe_sample, reliance, row_threshold
from decant.purify.settings import PurifySettings


@dataclass(frozen=True)
class PurifyDecision:
    """Which rows get purified pixels, and why."""

    purified: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    """How well the residual predicts the row's label; higher is more suspicious."""
    flagged: Bool[np.ndarray, " n"]
    """Rows that seem to carry a perturbation."""
    test: ShortcutTest | None = None
    """None where `purify.when` or the method asks for no test."""

    @classmethod
    def of_all(cls, rows: int, *, purified: bool) -> "PurifyDecision":
        """All rows alike, none scored."""
        return cls(np.full(rows, purified), np.zeros(rows), np.zeros(rows, bool))


def decide(seed: int, purify: PurifySettings, received: Path, everything: Path) -> PurifyDecision:
    """Tests for a shortcut, scores the rows, and chooses which of them get purified pixels.

    received, everything: tables of all rows as received, and purified. The tests are made for D-VAE's residual; any
    other method purifies all rows.
    """
    if purify.method != "dvae":
        return PurifyDecision.of_all(count_rows(received), purified=True)
    x, x3 = (probe_sample(path, seed=seed) for path in (received, everything))
    test = reliance(x, x3, seed=seed) if purify.when == "auto" else None
    scorer = RowScorer.fit(x, x3, seed=seed)
    scores = np.concatenate([scorer(before, after) for before, after in pairs(received, everything)])
    found = test is None or test.found
    flagged = (scores >= row_threshold(scores)) & found
    return PurifyDecision(flagged if purify.rows == "flagged" else np.full(len(scores), found), scores, flagged, test)


def pairs(received: Path, everything: Path) -> Iterator[tuple[Images, Images]]:
    """The same rows as received and as purified, one row group at a time."""
    for before, after in zip(iter_images(received), iter_images(everything), strict=True):
        assert np.array_equal(before.ids, after.ids), "both tables hold the same rows in the same row groups"
        yield before, after


def write_chosen(
    received: Path, everything: Path, wanted: Bool[np.ndarray, " n"], path: Path
) -> Float[np.ndarray, " n"]:
    """Writes purified pixels where `wanted`, else those received. Returns each row's RMS change in grey levels."""
    example = next(iter_images(received))
    changes, start = [], 0
    with ImagesWriter(path, example.shape, example.info) as writer:
        for before, after in pairs(received, everything):
            chosen = wanted[start : start + len(before), None, None, None]
            result = before.with_pixels(np.where(chosen, after.pixels, before.pixels))
            writer.write_images(result)
            changes.append(np.sqrt(((result.pixels.astype(np.float32) - before.pixels) ** 2).mean((1, 2, 3))))
            start += len(before)
    return np.concatenate(changes)


def as_verdicts(ids: Int[np.ndarray, " n"], decision: PurifyDecision, changes: Float[np.ndarray, " n"]) -> pd.DataFrame:
    """A Verdicts table that keeps every row; `changes` as `write_chosen` returns them."""
    carries = pd.Series(decision.flagged).map({True: "its residual predicts its label; ", False: ""})
    pixels = pd.Series(changes).map(lambda rms: f"pixels purified by {rms:.1f} grey levels RMS" if rms else "unchanged")
    return pd.DataFrame(
        {
            "id": ids,
            "stage": "purify_2",
            "score": decision.scores.astype(np.float32),
            "flagged": decision.flagged,
            "action": np.where(changes > 0, "purify", "keep"),
            "reason": carries + pixels,
        }
    )


def note_of(method: str, go_on: bool, decision: PurifyDecision, rms: float) -> str:
    """What purification did, for people.

    go_on: whether the first stage left the decision to the second. rms: mean change of a row's pixels in grey levels.
    """
    if not go_on:
        return "as purify_1 decided: your pixels are untouched"
    result = f"{decision.test}: " if decision.test else ""
    if decision.test and not decision.test.found:
        return f"{result}your pixels are untouched"
    done = f"{result}purified {decision.purified.sum()} rows by {rms:.1f} grey levels RMS"
    if method != "dvae":
        return f"{done}, by {method}"
    return f"{done}; {decision.flagged.sum()} seem to carry a perturbation"
