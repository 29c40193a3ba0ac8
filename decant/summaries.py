"""The stages' summaries: one class per stage for the contents of its `summary.json`.

`tasks.<stage>.run` returns it, `python -m tasks` writes it after all other files of the stage, and all others read it
through its class. Shares and rates are fractions in [0, 1]; whoever makes a summary rounds its figures, so that the
same run gives the same bytes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from decant.errors import StageError
from decant.files import write_json
from decant.settings import Block

FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Summary(Block):
    """The fields of every stage's summary."""

    rows_in: int
    """Training rows that the stage was given."""
    rows_out: int
    """Training rows that it passes on."""
    note: str
    """For people: what was done, or why nothing was."""

    def write(self, folder: Path) -> None:
        """Writes the summary into the stage's folder."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The summary in a stage's folder. Raises StageError where there is none, or one of another version."""
        path = folder / FILE
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise StageError(f"{path}: can't be read ({error.strerror}); run the stage that writes it first") from error
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise StageError(
                f"{path}: written by another version of Decant ({field}: {fault['msg']}); run that stage again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class IngestSummary(Summary):
    test_rows: int
    left_out: int
    """Usable training rows beyond `ingest.limit`."""
    rejected: int
    """Rows in quarantine."""
    probe_rows: int
    """Clean rows of `ingest.probe`."""
    duplicates: int
    """Rows with the pixels of an earlier row."""
    duplicates_other_label: int
    """Those of them under another label."""
    test_rows_in_train: int
    """Test rows whose pixels also stand among the training rows."""
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(height, width, channel)"""
    source: str
    checksum: str
    """SHA-256 of the training rows."""
    test_checksum: str


@dataclass(frozen=True, kw_only=True)
class SimulateSummary(Summary):
    attacks: dict[str, int]
    """Attack to the number of rows that it changed."""
    triggered: int
    """Test rows with a trigger, to measure poison success on."""
    affected_points: int

    @property
    def planted(self) -> bool:
        """Whether any row was poisoned."""
        return any(self.attacks.values())


@dataclass(frozen=True, kw_only=True)
class Purify1Summary(Summary):
    go_on: bool
    """Whether the second stage shall purify, too."""
    perturbation_rms: float | None = None
    """Root mean square of the estimated perturbation in grey levels; None where nothing was fitted."""


@dataclass(frozen=True, kw_only=True)
class Purify2Summary(Summary):
    flagged: int
    """Rows that seem to carry a perturbation."""
    purified: int
    """Rows that pass on with other pixels than they came with."""
    changed_rms: float
    """Root mean square change of the pixels in grey levels, averaged over all rows."""


@dataclass(frozen=True, kw_only=True)
class Reliability(Block):
    """How far the trusts agree with the answers about rows that were drawn at random."""

    rows: int
    brier: float
    ece: float
    """Expected calibration error."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(Block):
    """What one value of `verify.threshold` does to the rows that nobody reviewed."""

    threshold: float | str
    trust: float
    """From which on a row is accepted."""
    refused: int
    far: float
    """False-acceptance rate: expected share of the wrong labels that are accepted."""
    frr: float
    """False-rejection rate: expected share of the right labels that are refused."""


@dataclass(frozen=True, kw_only=True)
class VerifySummary(Summary):
    method: str = "labeltrust"
    """`verify.method`."""
    dropped: int = 0
    relabelled: int = 0
    reviews: int = 0
    """Rows that the expert has answered."""
    queued: int = 0
    """Rows that wait for an answer."""
    label_noise_rate: float | None = None
    """Estimated share of wrong labels; None where no label was judged."""
    label_noise_interval: tuple[float, float] | None = None
    """95 % confidence interval of that share, by the rows drawn at random alone."""
    reliability: Reliability | None = None
    threshold: float | None = None
    """The trust from which on rows were accepted."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """The chosen threshold's, then others'."""
    lowest_confirmed_rate: float | None = None
    """The lowest error rate that the rows drawn at random can confirm, where `verify.threshold` is a target rate."""
    classifier_weight: float | None = None
    """Weight of the out-of-fold classifier beside the pairs; None where there was no classifier."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary(Summary):
    network: str


@dataclass(frozen=True, kw_only=True)
class DetectSummary(Summary):
    flagged: int
    affected_points: int
    """Affected points that were traced."""
    left_out: int
    """Affected points that were not: the model does not predict the reported label."""
    measure: str = ""
    """What the rows' scores are, with their range."""
    expected_false_alarms: float | None = None
    """Innocent rows to expect among the flagged, where the detector can tell."""


@dataclass(frozen=True, kw_only=True)
class UnlearnSummary(Summary):
    unlearned: int
    """Rows without which the model is as if it had been trained."""
    method: str | None = None
    """None where the trained model was kept."""


@dataclass(frozen=True, kw_only=True)
class BaselineSummary(Summary):
    oracle: bool
    """Whether a model was trained on the rows without the planted poison."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSummary(Summary):
    accuracy_received: float
    """Clean test accuracy of the model trained on the data as received."""
    accuracy_cleaned: float


@dataclass(frozen=True, kw_only=True)
class ExportSummary(Summary):
    test_rows: int
    dropped: int
    relabelled: int
    audited: int
    """Lines of audit.csv."""
    files: int
    """PNG files of the ImageFolder."""


@dataclass(frozen=True, kw_only=True)
class ReportSummary(Summary):
    bytes: int
