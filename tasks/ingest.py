"""ingest: read what the user has into one table of images per split; quarantine what can't be read.

Writes train.parquet, test.parquet, probe.parquet (clean rows to compare with, if any), places.parquet (id, path of
training and test rows), rejected.parquet (split, row, path, reason) and duplicates.csv (id, first_id, same_label).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from decant.data.decode import Rules
from decant.data.images import DatasetInfo
from decant.data.ingest import Part, WrittenPart, check_written, choose_parts, find_duplicates, sample_rules, write_part
from decant.data.settings import IngestSettings
from decant.data.sources import fingerprint, open_source
from decant.data.tables import ImagesWriter, write_places, write_rejected
from decant.errors import SourceError
from decant.files import write_csv, write_text
from decant.paths import SOURCE_FINGERPRINT
from decant.runtime import Progress
from decant.streams import stream
from decant.summaries import IngestSummary


def write_probe(
    path: Path, ingest: IngestSettings, class_names: tuple[str, ...], rules: Rules, rng: np.random.Generator
) -> WrittenPart | None:
    """The clean rows that the user named, decoded by the dataset's rules; None, and an empty table, when none are."""
    if ingest.probe is None:
        info = DatasetInfo(class_names=class_names, source="", checksum="")
        with ImagesWriter(path, rules.shape, info):
            return None
    source = open_source(ingest.probe, test_fraction=ingest.test_fraction, rng=rng)
    if source.class_names != class_names:
        wanted, found = (", ".join(names) for names in (class_names, source.class_names))
        raise SourceError(f"ingest.probe: the classes of ingest.source expected ({wanted}), {found} found")
    labels = source.train.labels
    part = Part("probe", source.train, np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0))
    return write_part(path, part, rules, class_names, ingest.probe, Progress("ingest", len(part.rows)))


def run(*, seed: int, ingest: IngestSettings, out: Path) -> IngestSummary:
    seen = fingerprint(ingest.source)
    rng = stream(seed, "ingest")
    source = open_source(ingest.source, test_fraction=ingest.test_fraction, rng=rng)
    parts = choose_parts(source, ingest, rng)
    rules = sample_rules(parts[0], ingest)
    progress = Progress("ingest", sum(len(part.rows) for part in parts))
    train, test = (
        write_part(out / f"{part.name}.parquet", part, rules, source.class_names, ingest.source, progress)
        for part in parts
    )
    check_written(parts, (train, test), source, ingest.max_rejected)
    probe = write_probe(out / "probe.parquet", ingest, source.class_names, rules, rng)
    written = [train, test, *([probe] if probe else [])]
    rejected = pd.concat([part.rejected for part in written], ignore_index=True)
    write_rejected(out / "rejected.parquet", rejected)
    places = [pd.DataFrame({"id": part.ids, "path": part.paths}) for part in (train, test)]
    write_places(out / "places.parquet", pd.concat(places, ignore_index=True))
    duplicates = find_duplicates(train, test)
    write_csv(out / "duplicates.csv", duplicates)
    write_text(SOURCE_FINGERPRINT, seen)  # no output: it holds times, and nothing that DVC hashes may
    in_train = int(np.isin(test.digests, train.digests).sum())
    kind = f"{rules.height} x {rules.width} {'gray' if rules.channels == 1 else 'RGB'}"
    facts = [
        f"{len(train.ids)} training and {len(test.ids)} test rows of {kind} in {len(source.class_names)} classes",
        f"quarantined: {len(rejected)}" if len(rejected) else "no row quarantined",
        f"left out by ingest.limit: {parts[0].left_out}" if parts[0].left_out else "",
        f"same pixels as an earlier row: {len(duplicates)}" if len(duplicates) else "",
        f"test rows whose pixels are also in train: {in_train}" if in_train else "",
        f"clean rows to compare with: {len(probe.ids)}" if probe else "",
        source.note,
    ]
    return IngestSummary(
        rows_in=len(parts[0].rows) + len(parts[0].faulty) + parts[0].left_out,
        rows_out=len(train.ids),
        test_rows=len(test.ids),
        left_out=parts[0].left_out,
        rejected=len(rejected),
        probe_rows=len(probe.ids) if probe else 0,
        duplicates=len(duplicates),
        duplicates_other_label=int((~duplicates["same_label"]).sum()),
        test_rows_in_train=in_train,
        classes=source.class_names,
        shape=rules.shape,
        source=ingest.source,
        checksum=train.checksum,
        test_checksum=test.checksum,
        note="; ".join(fact for fact in facts if fact),
    )
