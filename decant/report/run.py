"""Everything that the report shows of a finished run, read from the stages' folders.

Reads the planted truth, only to show beside each suspicion whether it was right.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import yaml
from jaxtyping import Int
from numpy import ndarray

from decant.attacks.base import kind_of
from decant.data.images import DatasetInfo, Images
from decant.data.tables import (
    iter_images,
    read_images,
    read_labels,
    read_places,
    read_rejected,
    read_truth,
    read_verdicts,
)
from decant.files import read_json
from decant.paths import (
    AFFECTED_POINTS,
    PLACES,
    PURIFIED,
    RECEIVED,
    REJECTED,
    REVIEWS,
    TRUTH,
    VERIFIED,
    stage_folder,
    verdicts_file,
    within,
)
from decant.purify.settings import PurifySettings
from decant.report.examples import Example, examples, rows_of
from decant.report.settings import EvaluateSettings
from decant.settings import load_params
from decant.steps import CHECKS
from decant.summaries import (
    DetectSummary,
    EvaluateSummary,
    IngestSummary,
    Purify1Summary,
    Purify2Summary,
    Summary,
    VerifySummary,
)

JUDGES = tuple(check.stage for check in CHECKS)  # the stages that judge every row


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """The summaries of the stages that the report tells of."""

    ingest: IngestSummary
    purify_1: Purify1Summary
    purify_2: Purify2Summary
    verify: VerifySummary
    detect: DetectSummary
    evaluate: EvaluateSummary

    @classmethod
    def read(cls, data: Path) -> Self:
        """Reads them from the stages' folders in `data`."""
        return cls(
            ingest=IngestSummary.read(stage_folder("ingest", data)),
            purify_1=Purify1Summary.read(stage_folder("purify_1", data)),
            purify_2=Purify2Summary.read(stage_folder("purify_2", data)),
            verify=VerifySummary.read(stage_folder("verify", data)),
            detect=DetectSummary.read(stage_folder("detect", data)),
            evaluate=EvaluateSummary.read(stage_folder("evaluate", data)),
        )

    def items(self) -> list[tuple[str, Summary]]:
        """(stage, its summary), in the order in which they ran."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run of all stages."""

    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Contents of params.yaml, to be shown."""
    purify: PurifySettings
    evaluate: EvaluateSettings
    info: DatasetInfo
    shape: tuple[int, int, int]
    given: "pd.Series[int]"
    """id to label as received."""
    summaries: Summaries
    verdicts: Mapping[str, pd.DataFrame]
    """A stage of JUDGES to its Verdicts."""
    suspects: Mapping[str, Images]
    """verify and detect to the rows that they suspect most, as the stage saw them, the most suspicious first."""
    examples: Sequence[Example]
    """Empty where purification changed no pixel."""
    affected: Images
    """Points with the label that a user saw predicted."""
    truth: pd.DataFrame
    """0 rows where nothing was planted, or nobody knows what was."""
    reviewed: int
    """Rows that the expert was shown."""
    rejected: pd.DataFrame
    """What ingest quarantined."""
    places: "pd.Series[str]"
    """id to where in the source a person finds the row."""

    @cached_property
    def known(self) -> bool:
        """Whether it is known which rows are poisoned, as a simulation planted the poison."""
        return len(self.truth) > 0

    @cached_property
    def original_labels(self) -> "pd.Series[int]":
        """id to the label before any attack."""
        before = self.given.copy()
        planted = self.truth.drop_duplicates("id").set_index("id")["original_label"]
        before.loc[planted.index] = planted
        return before

    @cached_property
    def planted(self) -> Mapping[int, list[str]]:
        """id to the attacks on it, but for perturbations of the pixels, which mostly lie on every row."""
        attacks: dict[int, list[str]] = {}
        for row_id, name in zip(self.truth["id"], self.truth["attack"], strict=True):
            if kind_of(name) != "unlearnable":
                attacks.setdefault(int(row_id), []).append(name)
        return attacks

    @cached_property
    def backdoored(self) -> frozenset[int]:
        """ids of the rows that carry a trigger."""
        return self.carrying("backdoor")

    def carrying(self, kind: str) -> frozenset[int]:
        """ids of the rows that an attack of this kind was planted on."""
        attacks = zip(self.truth["id"], self.truth["attack"], strict=True)
        return frozenset(int(row_id) for row_id, name in attacks if kind_of(name) == kind)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows received, kept, dropped, relabelled, purified (those with changed pixels)."""
        every = pd.concat([verdicts[["id", "action"]] for verdicts in self.verdicts.values()])
        dropped = set(every.loc[every["action"] == "drop", "id"])
        relabelled = set(every.loc[every["action"] == "relabel", "id"]) - dropped
        return {
            "received": len(self.given),
            "kept": len(self.given) - len(dropped),
            "dropped": len(dropped),
            "relabelled": len(relabelled),
            "purified": self.summaries.purify_2.purified,
        }


def read_run(data: Path, metrics: Path, settings: Path, *, suspects: int) -> FinishedRun:
    """The run in the folder `data`. suspects: how many rows of each stage to show."""
    params = yaml.safe_load(settings.read_text(encoding="utf-8")) or {}
    blocks = load_params(params, ("purify", "evaluate"))
    received = within(data, RECEIVED)
    ids, labels, info = read_labels(received)
    given = pd.Series(labels, index=ids)
    summaries = Summaries.read(data)
    verdicts = {stage: read_verdicts(verdicts_file(stage, data)) for stage in JUDGES}
    reviewed = pd.read_csv(within(data, REVIEWS))["id"]
    suspicion = verdicts["verify"].set_index("id")["score"]
    return FinishedRun(
        metrics=read_json(metrics),
        settings=params,
        purify=blocks["purify"],
        evaluate=blocks["evaluate"],
        info=info,
        shape=next(iter_images(received)).shape,
        given=given,
        summaries=summaries,
        verdicts=verdicts,
        suspects={  # as the stage saw them: its input is the output of the one before it
            "verify": rows_of(within(data, PURIFIED), most_suspicious(verdicts["verify"], suspects, reviewed)),
            "detect": rows_of(within(data, VERIFIED), most_suspicious(verdicts["detect"], suspects)),
        },
        examples=examples(data, given, suspicion) if summaries.purify_2.purified else [],
        affected=read_images(within(data, AFFECTED_POINTS)),
        truth=read_truth(within(data, TRUTH)),
        reviewed=len(reviewed),
        rejected=read_rejected(within(data, REJECTED)),
        places=read_places(within(data, PLACES)),
    )


def most_suspicious(verdicts: pd.DataFrame, rows: int, seen: Iterable[int] = ()) -> Int[ndarray, " rows"]:
    """Ids of the highest scores, the flagged before the rest; equal scores in order of id.

    seen: ids that an expert has judged, left out: their score says nothing about the method.
    """
    unseen = verdicts[~verdicts["id"].isin(list(seen))]
    ranked = unseen.sort_values(["flagged", "score", "id"], ascending=[False, False, True])
    return ranked["id"].to_numpy()[:rows]
