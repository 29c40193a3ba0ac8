"""Where a workspace keeps its files, seen from the folder that holds params.yaml and dvc.yaml.

dvc.yaml names the files of a stage in its command. These paths are for all others that look for such a file: the
command line, the flow, the review page, the result table.
"""

from pathlib import Path

METRICS = Path("metrics.json")
DATA = Path("data")

INPUTS = DATA / "inputs"  # written by people
DECISIONS = INPUTS / "decisions.csv"
AFFECTED = INPUTS / "affected.csv"
SUSPECTS = INPUTS / "suspects.csv"

RUNS = DATA / "runs"  # what differs from run to run: no output of any stage
SOURCE_FINGERPRINT = RUNS / "ingest.source"

TEST = DATA / "ingest/test.parquet"
PLACES = DATA / "ingest/places.parquet"
RECEIVED = DATA / "simulate/train.parquet"
TRUTH = DATA / "simulate/truth.parquet"
PURIFIED = DATA / "purify_2/train.parquet"
VERIFY = DATA / "verify"
VERIFIED = VERIFY / "train.parquet"
SCORER = VERIFY / "scorer.safetensors"  # absent after some runs: mode `paper`, embeddings
QUEUE = VERIFY / "queue.csv"
REVIEWS = VERIFY / "reviews.csv"
MODEL = DATA / "train/model.safetensors"
EXPORT = DATA / "export"
REPORT = DATA / "report/index.html"
