"""`decant suspects`: images whose prediction looks like the work of a few training rows, for a person to look at.

Writes the most suspicious as PNG files, and a CSV in the format of data/inputs/affected.csv from which the rows that
are wrong can be copied: `detect` then traces them. Flags nothing itself. Imports torch (3.5 s) and rich.
"""

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
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

if TYPE_CHECKING:
    from decant.data.images import Images
    from decant.detectors.candidates import Candidates


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
        f"{len(pictures):,} images looked at. The first {len(shown)} are in {escape(str(folder))}: copy the lines of "
        f"those that are wrong from {escape(str(arguments.out))} to {AFFECTED}, then `decant run`"
    )
    return 0


def examined(source: str, limit: int, scorer_file: Path) -> "tuple[Images, Candidates]":
    """The pictures of a source, at most `limit` of them, drawn at random, and what their predictions owe to whom."""
    from decant.data.images import Images
    from decant.data.tables import read_images
    from decant.detectors import candidates
    from decant.influence.factor_cache import own_folder
    from decant.labeltrust.scorer import TrustScorer
    from decant.models import networks
    from decant.runtime import be_deterministic, device

    be_deterministic()
    settings = params.settings()
    train, network = read_images(VERIFIED), networks.load(MODEL)[0].to(device())
    opened = open_pictures(source, train.info.class_names)
    rows = np.sort(np.random.default_rng(settings["seed"]).permutation(len(opened))[:limit])
    height, width, channels = train.shape
    parts = list(opened.decoded(Rules(height, width, 1 if channels == 1 else 3), rows))
    read = np.concatenate([part.rows for part in parts] or [rows[:0]])
    if not len(read):
        raise DecantError(f"{source}: no picture could be read")
    pixels = np.concatenate([part.pixels for part in parts])
    scorer = TrustScorer.load(scorer_file) if scorer_file.is_file() or scorer_file != SCORER else None
    if scorer and (scorer.class_names, scorer.shape) != (train.info.class_names, train.shape):
        raise DecantError(
            f"{scorer_file}: a scorer of other images than {VERIFIED}; name the one that `verify` fitted to it"
        )
    found = candidates.rank(
        network, train, pixels, settings["detect"], seed=settings["seed"], scorer=scorer, cache=own_folder()
    )
    return Images(opened.ids[read], pixels, found.predicted.astype(np.int32), train.info), found


def save(images: "Images", folder: Path) -> list[str]:
    """One PNG per image, in the given order, in the place of those of the last time. Returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9]-id*.png"):
        old.unlink()
    names = [f"{rank:03}-id{row_id}.png" for rank, row_id in enumerate(images.ids, 1)]
    for name, pixels in zip(names, images.pixels, strict=True):
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / name)
    return names


def place_of(picture: Path) -> str:
    """As affected.csv takes it: from its own folder on, or the whole path of a picture that is elsewhere."""
    picture, inputs = picture.resolve(), INPUTS.resolve()
    return str(picture.relative_to(inputs) if picture.is_relative_to(inputs) else picture)


def as_csv(images: "Images", found: "Candidates", shown: np.ndarray, files: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "predicted"))
    labels = found.predicted[shown].tolist()
    writer.writerows((file, images.info.class_names[label]) for file, label in zip(files, labels, strict=True))
    return out.getvalue()


def as_table(images: "Images", found: "Candidates", shown: np.ndarray, files: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for head in ("image", "predicted", "suspicion", "concentration", "distrust"):
        table.add_column(head, justify="left" if head in ("image", "predicted") else "right")
    for row, file in zip(shown, files, strict=True):
        distrust = "–" if found.distrust is None else f"{found.distrust[row]:.2f}"
        name = escape(images.info.class_names[found.predicted[row]])
        table.add_row(file, name, f"{found.suspicion[row]:.1f}", f"{found.concentration[row]:.1f}", distrust)
    return table
