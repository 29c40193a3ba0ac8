"""Whether the files behind `ingest.source` are still those that were ingested.

DVC watches files of the project; a dataset elsewhere on the disk it knows by name only. So `ingest` writes what it saw
(names, sizes and times of the files) to data/runs/ingest.source, and we compare.
"""

from pathlib import Path

import yaml

from decant.paths import SOURCE_FINGERPRINT


def source_changed() -> bool:
    """False also where nothing was ingested yet, and where the source is away: what was ingested still counts."""
    if not SOURCE_FINGERPRINT.is_file():
        return False
    from decant.data.sources import fingerprint

    source = str(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["ingest"]["source"])
    if not Path(source).expanduser().exists():
        return False
    return fingerprint(source) != SOURCE_FINGERPRINT.read_text(encoding="utf-8").strip()
