"""The report: what was wrong with a dataset and what was done about it, as one HTML page to look at.

Everything is inside the file: styles, drawings, and images as PNG data URIs; nothing is fetched. What differs from run
to run (seconds, memory, device, date) stays outside: the page loads it from ``../runs/runs.js`` where that exists, and
is complete without. The same evidence gives the same bytes.

Cost: about a second for thousands of rows; under 1.5 MB with the default of 18 suspicious rows per stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from decant.attacks.base import kind_of
from decant.data.images import DatasetInfo, Images
from decant.report import charts
from decant.report.charts import Step, percent
from decant.report.pictures import diverging, png_uri, shown_side
from decant.steps import CHECKS, ORACLE, STEPS
from decant.summaries import (
    DetectSummary,
    EvaluateSummary,
    IngestSummary,
    Purify1Summary,
    Purify2Summary,
    Summary,
    VerifySummary,
)

STRIP_SIDE, CARD_SIDE = 72, 92  # CSS pixels that a picture should take: about, at a whole multiple of its own size
REASONS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a class on its way through purification; pixels (h, w, c) uint8, perturbations float in [-1, 1]."""

    row_id: int
    label: int
    received: np.ndarray
    perturbations: Sequence[np.ndarray]
    """What each of the two stages took off this row."""
    purified: np.ndarray
    class_mean: np.ndarray
    """What both stages took off together, averaged over the class: what is keyed to a label stands out."""


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """What the stages say of themselves."""

    ingest: IngestSummary
    purify_1: Purify1Summary
    purify_2: Purify2Summary
    verify: VerifySummary
    detect: DetectSummary
    evaluate: EvaluateSummary

    @classmethod
    def read(cls, data: Path) -> Self:
        """data: the folder of the stages' folders."""
        return cls(
            ingest=IngestSummary.read(data / "ingest"),
            purify_1=Purify1Summary.read(data / "purify_1"),
            purify_2=Purify2Summary.read(data / "purify_2"),
            verify=VerifySummary.read(data / "verify"),
            detect=DetectSummary.read(data / "detect"),
            evaluate=EvaluateSummary.read(data / "evaluate"),
        )

    def items(self) -> list[tuple[str, Summary]]:
        """(stage, its summary), in the order in which they ran."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the page shows, read from the stages' folders."""

    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Contents of params.yaml."""
    info: DatasetInfo
    shape: tuple[int, int, int]
    ids: np.ndarray
    """(n,) of the rows as received."""
    labels: np.ndarray
    """(n,) labels as received."""
    summaries: Summaries
    verdicts: Mapping[str, pd.DataFrame]
    """purify_2, verify and detect to their Verdicts."""
    suspects: Mapping[str, Images]
    """verify and detect to the rows that they suspect most, as the stage saw them, the most suspicious first."""
    examples: Sequence[Example]
    affected: Images
    """Points with the label that a user saw predicted."""
    truth: pd.DataFrame
    """0 rows where nothing was planted, or nobody knows what was."""
    reviewed: int
    """Rows that the expert was shown."""
    rejected: pd.DataFrame
    """What ingest quarantined."""
    duplicates: int
    """Rows whose pixels stand in an earlier row."""
    places: pd.Series
    """id to where in the source a person finds the row."""

    @cached_property
    def known(self) -> bool:
        return len(self.truth) > 0

    @cached_property
    def original_labels(self) -> pd.Series:
        """id to the label before any attack."""
        before = pd.Series(self.labels, index=self.ids)
        planted = self.truth.drop_duplicates("id").set_index("id")["original_label"]
        before.loc[planted.index] = planted
        return before

    @cached_property
    def planted(self) -> Mapping[int, list[str]]:
        """id to the attacks on it, without noise, which hides nothing and mostly lies on every row."""
        attacks: dict[int, list[str]] = {}
        for row_id, name in zip(self.truth["id"], self.truth["attack"], strict=True):
            if kind_of(name) != "noise":
                attacks.setdefault(int(row_id), []).append(name)
        return attacks

    @cached_property
    def backdoored(self) -> frozenset[int]:
        """ids of the rows that carry a trigger."""
        return self.carrying("backdoor")

    def carrying(self, kind: str) -> frozenset[int]:
        """ids of the rows that an attack of this kind was planted on."""
        return frozenset(i for i, names in self.planted.items() if any(kind_of(name) == kind for name in names))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows received, kept, dropped, relabelled, purified (whose pixels were changed)."""
        every = pd.concat([verdicts[["id", "action"]] for verdicts in self.verdicts.values()])
        dropped = set(every.loc[every["action"] == "drop", "id"])
        relabelled = set(every.loc[every["action"] == "relabel", "id"]) - dropped
        return {
            "received": len(self.ids),
            "kept": len(self.ids) - len(dropped),
            "dropped": len(dropped),
            "relabelled": len(relabelled),
            "purified": int((self.verdicts["purify_2"]["action"] == "purify").sum()),
        }


def most_suspicious(verdicts: pd.DataFrame, rows: int, seen: Iterable[int] = ()) -> np.ndarray:
    """Ids of the `rows` highest scores, the flagged before the rest; equal scores in order of id.

    seen: ids that an expert has judged, left out: their score says nothing about the method.
    """
    unseen = verdicts[~verdicts["id"].isin(list(seen))]
    ranked = unseen.sort_values(["flagged", "score", "id"], ascending=[False, False, True])
    return ranked["id"].to_numpy()[:rows]


def render(evidence: Evidence) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "thousands": "{:,}".format, "picture": png_uri}
    environment.filters |= {"plain": plain, "sentence": sentence}
    template = resources.files("decant.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    steps = _steps(evidence.metrics)
    return environment.from_string(template).render(
        e=evidence,
        names=evidence.info.class_names,
        headline=headline(evidence),
        before=evidence.metrics.get("as_received", {}),
        after=evidence.metrics.get("cleaned", {}),
        oracle=evidence.metrics.get("oracle", {}),
        steps=steps,
        steps_chart=charts.steps_chart(steps),
        charts=charts,
        strip=[_strip(example, evidence) for example in evidence.examples],
        suspects={stage: _cards(stage, evidence) for stage in evidence.suspects},
        histograms={stage: _histogram(stage, evidence) for stage in evidence.verdicts},
        judges=[(check, evidence.metrics[check.key]) for check in CHECKS if check.key in evidence.metrics],
        refused=refused(evidence.rejected),
        zip=zip,
        side=shown_side(evidence.shape, STRIP_SIDE),
        card_side=shown_side(evidence.shape, CARD_SIDE),
    )


def _steps(metrics: Mapping[str, Any]) -> list[Step]:
    return [
        Step(
            name=step.name,
            accuracy=found.get("accuracy"),
            poison_success=found.get("poison_success"),
            rows=found.get("rows"),
            apart=step is ORACLE,
        )
        for step in (*STEPS, ORACLE)
        if (found := metrics.get(step.key))
    ]


def _strip(example: Example, evidence: Evidence) -> dict[str, Any]:
    return {
        "id": example.row_id,
        "name": evidence.info.class_names[example.label],
        "received": png_uri(example.received),
        "perturbations": [png_uri(diverging(p)) for p in example.perturbations],
        "purified": png_uri(example.purified),
        "class_mean": png_uri(diverging(example.class_mean)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def headline(evidence: Evidence) -> Markup:
    """What was wrong and what was done, in one sentence made from the numbers."""
    before, after = evidence.metrics.get("as_received", {}), evidence.metrics.get("cleaned", {})
    deeds = _deeds(evidence.counts)
    if before.get("accuracy") is None or after.get("accuracy") is None:
        return Markup("Decant returns this data {}.").format(deeds or "as it was: it found nothing to change")
    of = "clean images" if evidence.known else "the test images, by the labels that came with them"
    received = Markup("As received, this data trains a model that {}").format(_behaviour(before, of))
    if not deeds:
        return Markup("{}; Decant found nothing to change.").format(received)
    return Markup("{}; {}, it trains one that {}.").format(received, deeds, _behaviour(after))


def _behaviour(step: Mapping[str, Any], of: str = "") -> Markup:
    """of: the images that the accuracy is about; empty where that was said before."""
    words = Markup('is right on <b class="blue">{}</b>{}').format(percent(step["accuracy"]), of and f" of {of}")
    if step.get("poison_success") is None:
        return words
    obeys, marked = (" and obeys the attacker’s trigger on", " of marked ones") if of else (" and obeys on", "")
    return words + Markup('{} <b class="orange">{}</b>{}').format(obeys, percent(step["poison_success"]), marked)


def _deeds(counts: Mapping[str, int]) -> str:
    deeds = []
    if counts["purified"]:
        deeds.append(
            "purified" if counts["purified"] == counts["received"] else f"{counts['purified']:,} images purified"
        )
    if counts["relabelled"]:
        deeds.append(f"with {counts['relabelled']:,} labels corrected")
    if counts["dropped"]:
        deeds.append(f"without {counts['dropped']:,} of its {counts['received']:,} rows")
    return " and ".join(", ".join(deeds).rsplit(", ", 1))


def refused(rejected: pd.DataFrame) -> list[tuple[str, int]]:
    """(reason, rows), the commonest first."""
    if "reason" not in rejected:
        return []
    return [(str(reason), int(count)) for reason, count in rejected["reason"].value_counts().items()][:REASONS_SHOWN]


def sentence(note: str) -> str:
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


# ---------------------------------------------------------------------------------------------------------------------
# Suspicious rows
# ---------------------------------------------------------------------------------------------------------------------


def _cards(stage: str, evidence: Evidence) -> list[dict[str, Any]]:
    """What the page says about each suspicious row."""
    images = evidence.suspects[stage]
    verdicts = evidence.verdicts[stage].set_index("id")
    cards = []
    for row_id, pixels, label in zip(images.ids, images.pixels, images.labels, strict=True):
        verdict = verdicts.loc[row_id]
        suggested = verdict["suggested_label"]
        cards.append(
            {
                "id": int(row_id),
                "path": evidence.places[row_id],
                "picture": png_uri(pixels),
                "given": evidence.info.class_names[label],
                "suggested": None if pd.isna(suggested) else evidence.info.class_names[suggested],
                "score": float(verdict["score"]),
                "action": {"keep": "kept", "drop": "dropped", "relabel": "relabelled", "purify": "purified"}[
                    verdict["action"]
                ],
                "flagged": bool(verdict["flagged"]),
                "reason": verdict["reason"],
                "truth": _truth(stage, int(row_id), int(label), evidence),
            }
        )
    return cards


def _truth(stage: str, row_id: int, label: int, evidence: Evidence) -> dict[str, Any] | None:
    """Whether the suspicion was right, and how we know; None where nobody knows."""
    if not evidence.known:
        return None
    if stage == "verify":
        original = int(evidence.original_labels[row_id])
        words = "label is right" if original == label else f"really {evidence.info.class_names[original]}"
        return {"bad": original != label, "words": words}
    attacks = evidence.planted.get(row_id)
    words = "nothing planted" if attacks is None else f"planted: {', '.join(attacks)}"
    return {"bad": row_id in evidence.backdoored, "words": words}


def _histogram(stage: str, evidence: Evidence) -> Markup | None:
    """None where a stage gave no scores, or only one and the same."""
    verdicts = evidence.verdicts[stage]
    if verdicts["score"].nunique() < 2:
        return None
    flagged = verdicts["flagged"].to_numpy()
    bins = int(evidence.settings.get("evaluate", {}).get("bins", 40))
    planted = _really_bad(stage, verdicts, evidence)
    threshold = _threshold(stage, evidence)
    scores = verdicts["score"].to_numpy(dtype=float)
    return charts.histogram(scores, flagged, planted=planted, threshold=threshold, axis=_AXES[stage], bins=bins)


_AXES = {
    "purify_2": "how well a row's label reads from what purification takes off it (margin of a linear reader)",
    "verify": "suspicion = 1 − trust",
    "detect": "the detector's score: how much a row is to blame for the affected points",
}


def _really_bad(stage: str, verdicts: pd.DataFrame, evidence: Evidence) -> np.ndarray | None:
    """(n,) bool: what the stage is there to find. None where nobody knows, or where every row or none is that."""
    if not evidence.known:
        return None
    if stage == "purify_2":
        return verdicts["id"].isin(list(evidence.carrying("noise"))).to_numpy()
    if stage == "verify":
        given = pd.Series(evidence.labels, index=evidence.ids).loc[verdicts["id"]].to_numpy()
        return given != evidence.original_labels.loc[verdicts["id"]].to_numpy()
    return verdicts["id"].isin(list(evidence.backdoored)).to_numpy()


def _threshold(stage: str, evidence: Evidence) -> float | None:
    """The score from which on rows were flagged, where there is one."""
    if stage == "verify":  # the expert's verdicts stand on either side of it
        trust = evidence.summaries.verify.threshold
        return None if trust is None else 1 - trust
    verdicts = evidence.verdicts[stage]
    flagged = verdicts.loc[verdicts["flagged"], "score"]
    return float(flagged.min()) if len(flagged) else None
