"""The report's sentences and values, made from a run's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from decant.report.run import FinishedRun

REASONS_SHOWN = 12


def percent(fraction: float | None, digits: int = 1) -> str:
    """`98.1 %` with a blank that doesn't break; a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}\u00a0%"


def headline(run: FinishedRun) -> Markup:
    """What was wrong and what was done, in one sentence."""
    before, after = run.metrics.get("as_received", {}), run.metrics.get("cleaned", {})
    changes = _changes(run.counts)
    if before.get("accuracy") is None or after.get("accuracy") is None:
        return Markup("Decant returns this data {}.").format(changes or "as it was: it found nothing to change")
    of = "clean images" if run.known else "the test images, by the labels that came with them"
    received = Markup("As received, this data trains a model that {}").format(_behaviour(before, of))
    if not changes:
        return Markup("{}; Decant found nothing to change.").format(received)
    return Markup("{}; {}, it trains one that {}.").format(received, changes, _behaviour(after))


def _behaviour(figures: Mapping[str, Any], of: str = "") -> Markup:
    """of: the images that the accuracy is about; empty where that was said before."""
    words = Markup('is right on <b class="blue">{}</b>{}').format(percent(figures["accuracy"]), of and f" of {of}")
    if figures.get("poison_success") is None:
        return words
    triggered = " of triggered ones" if of else ""
    success = percent(figures["poison_success"])
    return words + Markup(' and gives the attacker’s label to <b class="orange">{}</b>{}').format(success, triggered)


def _changes(counts: Mapping[str, int]) -> str:
    """`purified, with 3 labels corrected and without 6 of its 30 rows`; empty where nothing changed."""
    purified, received = counts["purified"], counts["received"]
    changes = []
    if purified:
        changes.append("purified" if purified == received else f"{purified:,} images purified")
    if counts["relabelled"]:
        changes.append(f"with {counts['relabelled']:,} labels corrected")
    if counts["dropped"]:
        changes.append(f"without {counts['dropped']:,} of its {received:,} rows")
    return " and ".join(", ".join(changes).rsplit(", ", 1))


def reasons(rejected: pd.DataFrame) -> list[tuple[str, int]]:
    """(reason, rows) of the quarantined rows, the commonest first."""
    return [(str(reason), int(count)) for reason, count in rejected["reason"].value_counts().items()][:REASONS_SHOWN]


def sentence(note: str) -> str:
    """The note with a capital at its beginning and a full stop."""
    return note[:1].upper() + note[1:].rstrip(".") + "."


def plain(value: Any) -> str:
    """A parameter's value as params.yaml would say it, without brackets."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(plain, value)) or "none"
    return str(value)
