"""A folder of images: one folder per class, perhaps inside `train/` and `test/` (or `val/`, `valid/`, `validation/`).

Every file below a class folder is a row, whatever it is called: what is no image is quarantined later, so that nothing
is lost silently. Only litter is passed over: hidden files and folders, Thumbs.db, desktop.ini, __MACOSX. Links are
followed, once each.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from decant.data.sources.base import Batch, Source, Split
from decant.errors import SourceError

TEST_FOLDERS = ("test", "val", "valid", "validation")
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm"}
BATCH_ROWS = 64


def open_image_folder(folder: Path) -> Source:
    """Lists the folder's images as a source.

    Raises: SourceError when it holds no class folders, no images, or a class without a file.
    """
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    held_out = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()] if train_folder != folder else []
    classes = [entry for entry in _entries(train_folder) if entry.is_dir()]
    if not classes:
        raise SourceError(f"{train_folder}: no class folders; give each class a folder of its own: <class>/<image>.png")
    files = {entry.name: list(walk(Path(entry.path))) for entry in classes}
    every = [file for found in files.values() for file in found]
    if not any(os.path.splitext(file)[1].lower() in SUFFIXES for file in every):
        raise SourceError(f"{train_folder}: no image files in its {len(classes)} folders; expected <class>/<image>.png")
    empty = [printable(name) for name, found in files.items() if not found]
    if empty:
        raise SourceError(f"{train_folder / empty[0]}: a class folder without images; fill it or remove it")
    names = list(files)
    train = _split(every, np.repeat(np.arange(len(names)), [len(found) for found in files.values()]), {}, 0)
    test = _test_split(held_out[0], names, len(train)) if held_out else None
    ignored = ", ".join(f"{other.name}/" for other in held_out[1:])
    note = f"{held_out[0].name}/ is the test split, {ignored} is not used" if ignored else ""
    return Source(tuple(map(printable, names)), train, test, note)


def _test_split(folder: Path, names: list[str], first_id: int) -> Split:
    files: list[str] = []
    labels: list[int] = []
    faults: dict[int, str] = {}
    known = {name: label for label, name in enumerate(names)}
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        for file in walk(Path(entry.path)):
            if entry.name not in known:
                faults[len(files)] = f"label {printable(entry.name)!r}: no training folder of that name"
            labels.append(known.get(entry.name, -1))
            files.append(file)
    if not files:
        raise SourceError(f"{folder}: no image files; fill it or remove it, and a test split is set aside")
    return _split(files, np.array(labels), faults, first_id)


def _split(files: list[str], labels: np.ndarray, faults: dict[int, str], first_id: int) -> Split:
    def read(rows: np.ndarray) -> Iterator[Batch]:
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            yield part, [files[row] for row in part]

    ids = np.arange(first_id, first_id + len(files), dtype=np.int64)
    return Split(ids, labels.astype(np.int64), read, lambda row: printable(files[row]), faults)


def walk(folder: Path) -> Iterator[str]:
    """Paths of the files below `folder` in the order of their names.

    Links are followed, but no folder is entered twice; a link that leads nowhere is listed, pipes and sockets are not.
    """
    yield from _walk(str(folder), set())


def _walk(folder: str, entered: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in entered:
        return
    entered.add(real)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, entered)
        elif entry.is_file() or entry.is_symlink():
            yield entry.path


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What the folder holds, by name, without litter. Entries know their kind without another look at the disk."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: can't be listed ({error.strerror}); mend its permissions") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in LITTER]


def printable(name: str) -> str:
    """The name as text that can be stored: bytes that are no UTF-8 are spelled out (`\\xff`)."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
