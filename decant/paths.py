"""Where a workspace keeps its files, seen from the folder that holds params.yaml and dvc.yaml.

dvc.yaml names the files of a stage in its command. These paths are for all others that look for such a file: the
command line, the flow, the review page, the result table, and `evaluate` and `report`, which are told where the folder
`data` is.
"""

from pathlib import Path

METRICS = Path("metrics.json")
DATA = Path("data")


def within(data: Path, path: Path) -> Path:
    """One of the paths of this module, where the folder `data` lies elsewhere."""
    return data / path.relative_to(DATA)


def stage_folder(stage: str, data: Path = DATA) -> Path:
    """What a stage wrote."""
    return data / stage


def train_rows(stage: str, data: Path = DATA) -> Path:
    """The training rows that a stage passes on, an Images table."""
    return stage_folder(stage, data) / "train.parquet"


def verdicts_file(stage: str, data: Path = DATA) -> Path:
    """What a stage that judges every row found."""
    return stage_folder(stage, data) / "verdicts.parquet"


def perturbations_file(stage: str, data: Path = DATA) -> Path:
    """What a stage of purification removed from the rows."""
    return stage_folder(stage, data) / "perturbations.parquet"


INPUTS = DATA / "inputs"  # written by people
DECISIONS = INPUTS / "decisions.csv"
AFFECTED = INPUTS / "affected.csv"
SUSPECTS = INPUTS / "suspects.csv"

RUNS = DATA / "runs"  # what differs from run to run: no output of any stage
SOURCE_FINGERPRINT = RUNS / "ingest.source"

INGESTED = train_rows("ingest")
TEST = DATA / "ingest/test.parquet"
REJECTED = DATA / "ingest/rejected.parquet"
PLACES = DATA / "ingest/places.parquet"
RECEIVED = train_rows("simulate")
TRIGGERED = DATA / "simulate/triggered.parquet"  # test rows with the trigger
TRUTH = DATA / "simulate/truth.parquet"
PURIFIED = train_rows("purify_2")
VERIFY = stage_folder("verify")
VERIFIED = train_rows("verify")
SCORER = VERIFY / "scorer.safetensors"  # absent after some runs: mode `paper`, embeddings
QUEUE = VERIFY / "queue.csv"
REVIEWS = VERIFY / "reviews.csv"
MODEL = DATA / "train/model.safetensors"
AFFECTED_POINTS = DATA / "detect/affected.parquet"
UNLEARNED_MODEL = DATA / "unlearn/model.safetensors"
RECEIVED_MODEL = DATA / "baseline/received.safetensors"
PURIFIED_MODEL = DATA / "baseline/purified.safetensors"
ORACLE_MODEL = DATA / "baseline/oracle.safetensors"
EXPORT = DATA / "export"
REPORT = DATA / "report/index.html"
