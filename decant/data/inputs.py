"""Pictures to score and their labels, from any model or person: the input of `decant score`.

Pictures come from anything that `ingest.source` takes (all of its splits), or from a folder of pictures without class
folders. Labels come from the same table or class folders, or from a CSV ``id,label`` or ``file,label``. `id`: as ingest
numbers rows; `file`: a picture's path, absolute or relative to the folder, or its bare name where no other picture has
it; `label`: a class name or number.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from decant.data.decode import Decoded, Rules, decode_batches
from decant.data.images import NO_LABEL, class_number
from decant.data.sources import find_shards, image_folder, open_source
from decant.data.sources.base import Split
from decant.errors import SourceError
from decant.files import open_csv

AMBIGUOUS = -1  # among row numbers: a bare file name that several pictures have


@dataclass(frozen=True)
class InputPictures:
    """Pictures that are not decoded yet, with their labels."""

    splits: tuple[Split, ...]
    root: str
    """The folder or source as the user named it; relative file names start there."""
    labels: Int[np.ndarray, " n"]
    """Class numbers, or NO_LABEL."""
    faults: dict[int, str]
    """Row number to the reason why it has no label."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> Int[np.ndarray, " n"]:
        """Row ids, as ingest numbers them."""
        return np.concatenate([split.ids for split in self.splits])

    def file_of(self, row: int) -> str:
        """The path of a row's file, relative to `root` where it is inside. Raises: IndexError."""
        for first, split in _with_starts(self.splits):
            if first <= row < first + len(split):
                path = split.path_of(row - first)
                inside = os.path.isdir(self.root) and path.startswith(os.path.join(self.root, ""))
                return os.path.relpath(path, self.root) if inside else path
        raise IndexError(row)

    def decoded(self, rules: Rules, rows: Int[np.ndarray, " m"]) -> Iterator[Decoded]:
        """Decode those rows (ascending) in their order, in batches of bounded memory."""
        for first, split in _with_starts(self.splits):
            inside = rows[(rows >= first) & (rows < first + len(split))] - first
            for part in decode_batches(split.read(inside), rules) if len(inside) else ():
                rejected = [(row + first, reason) for row, reason in part.rejected]
                yield Decoded(part.rows + first, part.pixels, rejected)


def open_pictures(name: str, class_names: tuple[str, ...]) -> InputPictures:
    """Open the pictures behind `name`, with their own labels as numbers of `class_names`.

    Raises: SourceError, one line, when there is nothing that can be read.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not find_shards(folder) and not _has_folders(folder):
        return _open_flat_folder(folder)
    source = open_source(name, test_fraction=0.2, rng=np.random.default_rng(0))  # all rows are scored, however divided
    splits = tuple(split for split in (source.train, source.test) if split is not None)
    own = np.concatenate([split.labels for split in splits])
    labels = np.where(own >= 0, _numbers_among(class_names, source.class_names)[own], NO_LABEL)
    faults = {}
    for row in np.flatnonzero((own >= 0) & (labels == NO_LABEL)).tolist():
        faults[row] = f"no label: {source.class_names[own[row]]!r} is not a class of the scorer"
    for first, split in _with_starts(splits):
        faults |= {row + first: f"no label: {fault}" for row, fault in split.faults.items()}
    return InputPictures(splits, str(folder), labels, faults)


def _with_starts(splits: tuple[Split, ...]) -> Iterator[tuple[int, Split]]:
    """Each split with the number of its first row."""
    starts = np.cumsum([0, *(len(split) for split in splits)]).tolist()
    return zip(starts, splits, strict=False)


def _numbers_among(class_names: tuple[str, ...], own: tuple[str, ...]) -> Int[np.ndarray, " own"]:
    """The number that each of the source's own classes has among `class_names`; NO_LABEL for none.

    Where the two share any name, names alone count: a folder called 2 is then no third class.
    """
    by_name = not set(own).isdisjoint(class_names)
    return np.array(
        [NO_LABEL if by_name and name not in class_names else class_number(name, class_names) for name in own]
    )


def _has_folders(folder: Path) -> bool:
    try:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: can't be listed ({error.strerror}); mend its permissions") from error


def _open_flat_folder(folder: Path) -> InputPictures:
    files = [file for file in image_folder.walk(folder) if os.path.splitext(file)[1].lower() in image_folder.SUFFIXES]
    if not files:
        raise SourceError(f"{folder}: no image files ({', '.join(sorted(image_folder.SUFFIXES))})")

    def read(rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[str]]]:
        for start in range(0, len(rows), image_folder.BATCH_ROWS):
            part = rows[start : start + image_folder.BATCH_ROWS]
            yield part, [files[row] for row in part]

    nothing = np.full(len(files), NO_LABEL, np.int64)
    split = Split(np.arange(len(files)), nothing, read, lambda row: image_folder.printable(files[row]))  # type: ignore[arg-type]
    return InputPictures((split,), str(folder), nothing, {})


# ---------------------------------------------------------------------------------------------------------------------
# Labels from a CSV
# ---------------------------------------------------------------------------------------------------------------------


def with_labels(pictures: InputPictures, path: Path, class_names: tuple[str, ...]) -> InputPictures:
    """Replace the labels by those of a CSV; pictures that it doesn't name have none.

    Raises: SourceError with file and line when a column is missing, a row or class is unknown, or a row is there twice.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; a CSV with the columns id,label or file,label expected")
    with open_csv(path) as reader:
        columns = reader.fieldnames or []
        key = next((name for name in ("id", "file") if name in columns), None)
        if key is None or "label" not in columns:
            raise SourceError(f"{path}: columns id,label or file,label expected, {', '.join(columns) or 'none'} found")
        rows = _row_of_id(pictures) if key == "id" else _row_of_file(pictures)
        labels = np.full(len(pictures), NO_LABEL, np.int64)
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            row, label = _row(line[key] or "", rows, where, key), class_number(line["label"] or "", class_names)
            if label == NO_LABEL:
                some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
                raise SourceError(f"{where}: one of {some} expected, {line['label']!r} found")
            if labels[row] not in (NO_LABEL, label):
                raise SourceError(f"{where}: {key} {line[key]} has another label further up; keep one")
            labels[row] = label
    faults = dict.fromkeys(np.flatnonzero(labels == NO_LABEL).tolist(), f"no label in {path.name}")
    return replace(pictures, labels=labels, faults=faults)


def _row(text: str, rows: dict[str, int], where: str, key: str) -> int:
    row = rows.get(text.strip())
    if row is None:
        raise SourceError(f"{where}: {key} of a picture expected, {text!r} found")
    if row == AMBIGUOUS:
        raise SourceError(f"{where}: several pictures are called {text!r}; give the path from the folder on")
    return row


def _row_of_id(pictures: InputPictures) -> dict[str, int]:
    return {str(row_id): row for row, row_id in enumerate(pictures.ids.tolist())}


def _row_of_file(pictures: InputPictures) -> dict[str, int]:
    """Row by bare name, path from the folder on, and absolute path; a path wins over an equal bare name."""
    files = [pictures.file_of(row) for row in range(len(pictures))]
    by_name: dict[str, int] = {}
    for row, file in enumerate(files):
        name = os.path.basename(file)
        by_name[name] = AMBIGUOUS if name in by_name else row
    by_path = {os.path.join(pictures.root, file): row for row, file in enumerate(files)}
    return by_name | by_path | {file: row for row, file in enumerate(files)}
