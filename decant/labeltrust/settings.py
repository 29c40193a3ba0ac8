"""Parameters of the stage `verify`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from decant.errors import SettingsError
from decant.registry import LABEL_CHECKS
from decant.settings import Block, Count, Fraction, Positive, Rate


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Block):
    """Label verification. All but `method`, `references`, `budget`, `action` and `expert` is LabelTrust's alone."""

    enabled: bool = True
    method: Annotated[str, Field(json_schema_extra={"enum": LABEL_CHECKS.names()})] = "labeltrust"
    """A file of decant/label_checks. Any but `labeltrust` judges the labels by its own rule and its default parameters
    (docs/label-checks.md), after the expert was shown the first rows. There are no rounds and no scorer; a check that
    trains a classifier uses the defaults of the block `train`."""
    mode: Literal["plus", "paper"] = "plus"
    """`plus`: the score of a row is the probability that its label is wrong, and the networks are also trained on rows
    whose labels are trusted; `paper`: the method as published, whose score is not a probability."""
    references: Annotated[int, Field(ge=2, le=100)] = 10
    """Rows per class that the expert confirms before the first round (x in the paper)."""
    rounds: Count = 2
    """Rounds of review after the first scoring (the paper's refeed loop)."""
    reviews: Count = 5
    """Rows per class that the expert is shown in each round."""
    choice: Literal["active", "random"] = "active"
    """Which rows a round shows: those whose answer helps most, or random ones (to compare with)."""
    budget: Positive | None = None
    """Most rows that the expert is shown in all, references included; null: no limit but references, rounds and
    reviews. The rounds end where the budget left is less than a row per class."""
    stop_below: Fraction = 0.0
    """No further round once less than this share of the rows is expected to be judged wrongly, by their trust; that
    share is the most that any review could gain. 0: all rounds. `plus` only."""
    steps: Positive = 200
    """Training steps of one Siamese network; in self-training up to 3 times as many, from 12,000 rows on. Mode `paper`
    was measured with 1,000."""
    passes: Count = 1
    """`plus`: self-training passes before the first round. In a pass two networks are trained, each on the references
    and on the rows of one half whose label agrees with the last network; each judges the other half. Every round ends
    with a further pass. 0: no self-training at all."""
    classifier: bool = False
    """`plus`: also use the out-of-fold predictions of a small classifier trained on the given labels, in five folds:
    for photographs, and where people confuse classes. Not for data with triggers, as the classifier learns them
    and then confirms the attacker's labels."""
    pretrain: Count = 0
    """Steps of contrastive learning on all rows without their labels, from which every network starts; 0: none."""
    threshold: Fraction | Rate = 0.5
    """A row is kept when its trust is at least this; or a target rate, from which the threshold follows by the expected
    rates: `frr=0.02` (share of the right labels that are refused) or `far=0.001` (share of the wrong ones accepted)."""
    action: Literal["drop", "relabel"] = "drop"
    """What happens to a row whose label is refuted; `relabel` only above `relabel_above`, else it is dropped."""
    relabel_above: Fraction = 0.95
    """Trust in the suggested class from which on a row is relabelled."""
    embeddings: str | None = None
    """Features of the rows to compare instead of their pixels: a Parquet file (columns `id` and `embedding`, a list of
    numbers) or .npy (row i belongs to id i). Then no scorer is written, as other pictures have no embedding here."""
    expert: Literal["oracle", "file", "person"] = "oracle"
    """`oracle` answers from the simulation's truth (without a simulation it confirms every label); `file` answers from
    data/inputs/decisions.csv; `person` does the same, and `decant run` opens the review page and waits for the rows
    that have no answer there yet."""

    def __post_init__(self) -> None:
        LABEL_CHECKS.require(self.method, "verify.method")
        if self.method != "labeltrust":
            self._refuse_what_only_labeltrust_knows()
        if self.mode == "paper" and isinstance(self.threshold, str):
            raise SettingsError(
                "verify.threshold: a number expected, a target rate found; the score of mode paper is not a probability"
            )
        if self.mode == "paper" and self.stop_below:
            raise SettingsError("verify.stop_below: 0 expected; the score of mode paper is not a probability")
        if self.classifier and (self.mode == "paper" or self.embeddings):
            raise SettingsError("verify.classifier: works only with verify.mode: plus and verify.embeddings: null")

    def _refuse_what_only_labeltrust_knows(self) -> None:
        for name, is_set in (
            ("threshold", isinstance(self.threshold, str)),
            ("classifier", self.classifier),
            ("embeddings", self.embeddings is not None),
        ):
            if is_set:
                raise SettingsError(f"verify.{name}: needs verify.method: labeltrust, {self.method!r} found")
