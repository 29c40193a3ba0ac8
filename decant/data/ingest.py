"""Reads a source's rows into Images tables: chooses and splits them, quarantines bad ones, finds duplicates.

Rows are chosen before anything is decoded. They stream through in batches, so memory holds one row group and, per
row, an id, its place in the source, a label and a 64-bit hash of the pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, Int32, Int64, UInt64

from decant.data.decode import Decoded, Rules, choose_rules, decode_batches
from decant.data.images import DatasetInfo, Images, RowsChecksum, pixel_digests
from decant.data.parquet import ROW_GROUP_BYTES
from decant.data.settings import IngestSettings
from decant.data.sources.base import Source, Split
from decant.data.tables import REJECTED, ImagesWriter
from decant.errors import SourceError
from decant.runtime import Progress

SAMPLE_ROWS = 256  # whose sizes and colours decide those of the dataset
BYTES_BESIDE_PIXELS = 12  # id and label


@dataclass(frozen=True)
class Part:
    """The rows of a source that become one table."""

    name: str
    """train or test"""
    split: Split
    rows: Int64[np.ndarray, " n"]
    """Ascending row numbers with a usable label."""
    faulty: Int64[np.ndarray, " m"]
    """Ascending row numbers whose label is missing or out of range."""
    left_out: int = 0
    """Rows with a usable label that `ingest.limit` left out."""


@dataclass(frozen=True)
class WrittenPart:
    """The rows of a part that were written, and those that could not be read."""

    ids: Int64[np.ndarray, " n"]
    paths: list[str]
    """Where a person finds the rows."""
    labels: Int32[np.ndarray, " n"]
    digests: UInt64[np.ndarray, " n"]
    """Hashes of the pixels (`pixel_digests`)."""
    rejected: pd.DataFrame
    """A Rejected table (`decant.data.tables`)."""
    checksum: str
    """SHA-256 of the written rows."""


# ---------------------------------------------------------------------------------------------------------------------
# Which rows
# ---------------------------------------------------------------------------------------------------------------------


def choose_parts(source: Source, settings: IngestSettings, rng: np.random.Generator) -> tuple[Part, Part]:
    """(train, test). Without a test split, a share of each class is set aside; `ingest.limit` then applies to train.

    Raises: SourceError when there are fewer than two classes, a class without a training row, or too small a limit.
    """
    rows, faulty = _by_label(source.train)
    counts = np.bincount(source.train.labels[rows], minlength=len(source.class_names))
    if len(source.class_names) < 2:
        raise SourceError(f"{len(counts)} class found in {len(source.train)} rows; a classifier needs at least two")
    _check_every_class_has_rows(source.class_names, counts, counts)
    if source.test is not None:
        test = Part("test", source.test, *_by_label(source.test))
    else:
        wanted = np.rint(settings.test_fraction * counts).astype(np.int64)
        held_out = np.minimum(np.maximum(wanted, 1), counts - 1)  # both sides see every class of two rows or more
        positions = pick(source.train.labels[rows], held_out, rng)
        test = Part("test", source.train, rows[positions], np.empty(0, np.int64))
        rows = np.delete(rows, positions)
    available = len(rows)
    if settings.limit is not None and settings.limit < available:
        if settings.limit < len(counts):
            raise SourceError(f"ingest.limit={settings.limit}: at least {len(counts)} expected, one row for each class")
        labels = source.train.labels[rows]
        rows = rows[pick(labels, shares(np.bincount(labels), settings.limit), rng)]
    return Part("train", source.train, rows, faulty, available - len(rows)), test


def _by_label(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (with a label, without)."""
    return np.flatnonzero(split.labels >= 0), np.flatnonzero(split.labels < 0)


def shares(sizes: Int[np.ndarray, " classes"], total: int) -> Int64[np.ndarray, " classes"]:
    """Divides `total` rows over classes in proportion to their sizes: by largest remainder, at least one for each.

    sizes: positive; total: between the number of classes and the sum of sizes. The shares sum to `total` exactly.
    """
    exact = sizes * total / sizes.sum()
    take = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := total - take.sum()) != 0:
        excess = take - exact  # rounded down furthest: first to get one; rounded up furthest: first to give one
        order = np.argsort(excess if missing > 0 else np.where(take > 1, -excess, np.inf), kind="stable")
        take[order[: abs(missing)]] += np.sign(missing)
    return take


def pick(
    labels: Int[np.ndarray, " n"], counts: Int[np.ndarray, " classes"], rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Draws `counts[c]` rows of each class c at random; returns their positions, ascending."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def _check_every_class_has_rows(names: tuple[str, ...], left: np.ndarray, had: np.ndarray) -> None:
    if len(gone := np.flatnonzero(left <= 0)):
        name, others = names[gone[0]], f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        raise SourceError(
            f"class {name!r}{others} has no training row left, of {int(had[gone[0]])} in the source; add usable rows "
            "or take the class out"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Decode and write
# ---------------------------------------------------------------------------------------------------------------------


def sample_rules(part: Part, settings: IngestSettings) -> Rules:
    """Size and colour of the dataset, from evenly spaced training rows."""
    picked = np.unique(np.linspace(0, len(part.rows) - 1, SAMPLE_ROWS).astype(np.int64))
    items = (item for _, batch in part.split.read(part.rows[picked]) for item in batch)
    return choose_rules(items, settings.size, settings.color)


def write_part(
    path: Path, part: Part, rules: Rules, names: tuple[str, ...], source: str, progress: Progress
) -> WrittenPart:
    """Decodes the part's rows into an Images table at `path`. The file's bytes don't depend on how batches fell."""
    checksum = RowsChecksum()
    rejected = [(int(row), part.split.faults[int(row)]) for row in part.faulty]
    kept: list[tuple[np.ndarray, np.ndarray]] = []  # (rows, digests)
    info = DatasetInfo(class_names=names, source=source, checksum="")
    with ImagesWriter(path, rules.shape, None) as writer:
        for decoded in _row_groups(_decoded(part, rules, rejected, progress), rules):
            ids, labels = part.split.ids[decoded.rows], part.split.labels[decoded.rows].astype(np.int32)
            images = Images(ids, decoded.pixels, labels, info)
            checksum.update(images)
            writer.write_images(images)
            kept.append((decoded.rows, pixel_digests(decoded.pixels)))
        writer.write_info(DatasetInfo(class_names=names, source=source, checksum=checksum.hexdigest()))
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in kept)])
    digests = np.concatenate([np.empty(0, np.uint64), *(digests for _, digests in kept)])
    lines = [(part.name, row, part.split.path_of(row), reason) for row, reason in sorted(rejected)]
    return WrittenPart(
        part.split.ids[rows],
        [part.split.path_of(int(row)) for row in rows],
        part.split.labels[rows].astype(np.int32),
        digests,
        pd.DataFrame(lines, columns=REJECTED.names),
        checksum.hexdigest(),
    )


def _decoded(part: Part, rules: Rules, rejected: list[tuple[int, str]], progress: Progress) -> Iterator[Decoded]:
    for decoded in decode_batches(part.split.read(part.rows), rules):
        rejected += decoded.rejected
        progress.step(len(decoded.rows) + len(decoded.rejected))
        yield decoded


def _row_groups(stream: Iterator[Decoded], rules: Rules) -> Iterator[Decoded]:
    """The same rows in pieces that fill one row group each."""
    size = max(1, ROW_GROUP_BYTES // (math.prod(rules.shape) + BYTES_BESIDE_PIXELS))
    waiting: list[Decoded] = []
    for decoded in stream:
        waiting.append(decoded)
        if sum(len(part.rows) for part in waiting) < size:
            continue
        joined = _joined(waiting)
        full = len(joined.rows) // size * size
        yield from (_cut(joined, start, start + size) for start in range(0, full, size))
        waiting = [_cut(joined, full, len(joined.rows))]
    if waiting and len((last := _joined(waiting)).rows):
        yield last


def _joined(parts: list[Decoded]) -> Decoded:
    rows, pixels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "pixels"))
    return Decoded(rows, pixels, [])


def _cut(decoded: Decoded, start: int, stop: int) -> Decoded:
    return Decoded(decoded.rows[start:stop], decoded.pixels[start:stop], [])


# ---------------------------------------------------------------------------------------------------------------------
# What came out
# ---------------------------------------------------------------------------------------------------------------------


def check_written(
    parts: tuple[Part, Part], written: tuple[WrittenPart, WrittenPart], source: Source, limit: float
) -> None:
    """Checks that every class and the test split still have rows, and that few rows are bad.

    The share that `limit` (ingest.max_rejected) bounds is that of bad labels among all rows of the source plus that of
    bad images among the rows that were decoded: with `ingest.limit` these are different numbers of rows.

    Raises: SourceError, with the counts.
    """
    reasons = pd.concat([part.rejected["reason"] for part in written])
    faulty = sum(len(part.faulty) for part in parts)
    decoded = sum(len(part.rows) for part in parts)
    labelled = decoded + parts[0].left_out
    broken = len(reasons) - faulty
    if faulty / (faulty + labelled) + broken / max(1, decoded) > limit:
        commonest = "; ".join(f"{count} x {reason}" for reason, count in reasons.value_counts().head(3).items())
        raise SourceError(
            f"{faulty} of {faulty + labelled} labels and {broken} of {decoded} images are bad, more than "
            f"ingest.max_rejected={limit:g} allows ({commonest}); mend them or raise the limit"
        )
    classes = len(source.class_names)
    had = np.bincount(parts[0].split.labels[parts[0].rows], minlength=classes)
    _check_every_class_has_rows(source.class_names, np.bincount(written[0].labels, minlength=classes), had)
    if not len(written[1].ids):
        raise SourceError("no usable test row; mend the test split, or take it out and one is set aside")


def find_duplicates(train: WrittenPart, test: WrittenPart) -> pd.DataFrame:
    """Lists the rows with the pixels of an earlier one: ``id | first_id | same_label``. Test rows come last."""
    digests = np.concatenate([train.digests, test.digests])
    ids = np.concatenate([train.ids, test.ids])
    labels = np.concatenate([train.labels, test.labels])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    first_row = first[inverse]  # of each row: where its pixels stand first
    repeated = first_row != np.arange(len(ids))
    lines = {"id": ids, "first_id": ids[first_row], "same_label": labels == labels[first_row]}
    return pd.DataFrame({name: column[repeated] for name, column in lines.items()})
