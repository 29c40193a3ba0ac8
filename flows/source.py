"""Whether the files behind `ingest.source` are still those that were ingested.

DVC watches files of the project; a dataset elsewhere on the disk it knows by name only. So `ingest` writes what it saw
(names, sizes and times of the files) to data/runs/ingest.source, and we compare.
"""

from pathlib import Path

import yaml

from decant.errors import DecantError

FINGERPRINT = Path("data/runs/ingest.source")


def source_changed() -> bool:
    """False also where nothing was ingested yet, and where the source can't be read: what was ingested still counts."""
    if not FINGERPRINT.is_file():
        return False
    from decant.sources import fingerprint

    try:
        params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        now = fingerprint(params["ingest"]["source"])
    except (DecantError, OSError):
        return False
    return now.strip() != FINGERPRINT.read_text(encoding="utf-8").strip()
