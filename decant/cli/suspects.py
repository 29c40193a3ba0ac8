"""`decant suspects`: test images whose prediction may be due to poison, for a person to look at.

Writes the most suspicious images as PNG files, and a CSV in the format of data/inputs/affected.csv. The user copies the
lines of those that are wrong to that file, and `detect` then traces them. Nothing is flagged here. Imports torch (3.5
s) and rich.
"""

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from decant import params
from decant.data.decode import Rules
from decant.data.inputs import open_pictures
from decant.errors import DecantError
from decant.files import write_text
from decant.paths import AFFECTED, INPUTS, MODEL, SCORER, VERIFIED
from decant.streams import stream

if TYPE_CHECKING:
    from decant.data.images import Images
    from decant.detectors.candidates import Candidates
    from decant.labeltrust.scorer import TrustScorer


def main(arguments: argparse.Namespace) -> int:
    for path in (MODEL, VERIFIED):
        if not path.is_file():
            raise DecantError(f"{path}: not there yet; `decant run train` first")
    for option in ("count", "limit"):
        if vars(arguments)[option] < 1:
            raise DecantError(f"--{option}: at least 1 expected, {vars(arguments)[option]} found")
    folder = arguments.out.with_suffix("")
    if folder == arguments.out or arguments.out.is_dir():
        raise DecantError(f"--out {arguments.out}: a file such as {folder}.csv expected; the pictures go to {folder}/")
    console = Console(highlight=False)
    pictures, found = examined(arguments.images, arguments.limit, arguments.scorer)
    shown = found.order[: arguments.count]
    files = save(pictures.select(shown), folder)
    write_text(arguments.out, as_csv(pictures, found, shown, [place_of(folder / file) for file in files]))
    console.print(as_table(pictures, found, shown, files))
    console.print(
        f"{len(pictures):,} images examined. The {len(shown)} most suspicious are in {escape(str(folder))}. Copy the "
        f"lines of those that are predicted wrongly from {escape(str(arguments.out))} to {AFFECTED}, then `decant run`"
    )
    return 0


def examined(source: str, limit: int, scorer_file: Path) -> "tuple[Images, Candidates]":
    """At most `limit` pictures of a source, drawn at random, and how suspicious the model's predictions of them are."""
    from decant.data.images import Images
    from decant.data.tables import read_images
    from decant.detectors import candidates
    from decant.influence.factor_cache import own_folder
    from decant.models import networks
    from decant.runtime import be_deterministic, device

    be_deterministic()
    settings = params.settings()
    train, network = read_images(VERIFIED), networks.load(MODEL)[0].to(device())
    opened = open_pictures(source, train.info.class_names)
    rows = np.sort(stream(settings["seed"], "suspects", "pictures").permutation(len(opened))[:limit])
    height, width, channels = train.shape
    parts = list(opened.decoded(Rules(height, width, 1 if channels == 1 else 3), rows))
    read = np.concatenate([part.rows for part in parts] or [rows[:0]])
    if not len(read):
        raise DecantError(f"{source}: no picture could be read")
    pixels = np.concatenate([part.pixels for part in parts])
    found = candidates.rank(
        network,
        train,
        pixels,
        settings["detect"],
        seed=settings["seed"],
        scorer=scorer_of(train, scorer_file),
        cache=own_folder(),
    )
    return Images(opened.ids[read], pixels, found.predicted.astype(np.int32), train.info), found


def scorer_of(train: "Images", file: Path) -> "TrustScorer | None":
    """LabelTrust's scorer of the training rows; None where the default file is missing.

    Raises: DecantError for a scorer for other classes or image sizes.
    """
    from decant.labeltrust.scorer import TrustScorer

    if file == SCORER and not file.is_file():
        return None
    scorer = TrustScorer.load(file)
    if (scorer.class_names, scorer.shape) != (train.info.class_names, train.shape):
        raise DecantError(
            f"{file}: a scorer for other classes or image sizes than {VERIFIED}; name the one that `verify` wrote"
        )
    return scorer


def save(images: "Images", folder: Path) -> list[str]:
    """Writes one PNG per image, in the given order, and deletes those of an earlier run. Returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9]-id*.png"):
        old.unlink()
    names = [f"{rank:03}-id{row_id}.png" for rank, row_id in enumerate(images.ids, 1)]
    for name, pixels in zip(names, images.pixels, strict=True):
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / name)
    return names


def place_of(picture: Path) -> str:
    """A picture's path as affected.csv takes it: relative to that file's folder, or absolute if it is elsewhere."""
    picture, inputs = picture.resolve(), INPUTS.resolve()
    return str(picture.relative_to(inputs) if picture.is_relative_to(inputs) else picture)


def as_csv(images: "Images", found: "Candidates", shown: Int[np.ndarray, " rows"], files: list[str]) -> str:
    """The lines of affected.csv for the rows `shown`, whose pictures are `files`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "predicted"))
    labels = found.predicted[shown].tolist()
    writer.writerows((file, images.info.class_names[label]) for file, label in zip(files, labels, strict=True))
    return out.getvalue()


def as_table(images: "Images", found: "Candidates", shown: Int[np.ndarray, " rows"], files: list[str]) -> Table:
    """The rows `shown` with their scores, as a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for head in ("image", "predicted", "suspicion", "concentration", "distrust"):
        table.add_column(head, justify="left" if head in ("image", "predicted") else "right")
    for row, file in zip(shown, files, strict=True):
        distrust = "–" if found.distrust is None else f"{found.distrust[row]:.2f}"
        name = escape(images.info.class_names[found.predicted[row]])
        table.add_row(file, name, f"{found.suspicion[row]:.1f}", f"{found.concentration[row]:.1f}", distrust)
    return table
