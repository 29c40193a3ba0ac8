"""Find out whether the files behind `ingest.source` are still those that were ingested.

DVC watches the files of the project; of a dataset elsewhere on the disk it knows only the name. So `ingest` writes the
names, sizes and times of the files to data/runs/ingest.source, and `source_changed` compares.
"""

from pathlib import Path

import yaml

from decant.paths import SOURCE_FINGERPRINT


def source_changed() -> bool:
    """Whether files were added, removed or changed. False before the first ingest, and while the source is missing."""
    if not SOURCE_FINGERPRINT.is_file():
        return False
    from decant.data.sources import fingerprint

    source = str(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["ingest"]["source"])
    if not Path(source).expanduser().exists():
        return False
    return fingerprint(source) != SOURCE_FINGERPRINT.read_text(encoding="utf-8").strip()
