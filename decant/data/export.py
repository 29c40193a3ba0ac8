"""Writes the finished dataset in layouts that other tools open at once.

* **Hugging Face image Parquet**: `image` struct of PNG bytes and path, `label` int64, and the `id` of the row; the
  class names stand in the `huggingface` schema metadata, so `datasets.load_dataset("parquet", data_files=...)` gives
  Image and ClassLabel.
* **ImageFolder** of PNG files, `<split>/<class>/<id>.png`, for torchvision and everything that reads folders. Such
  readers number the classes in the order of the folders' names, which need not be the order of the labels.

PNG loses nothing: an exported dataset can be ingested again, with the same ids, pixels and labels.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from decant.data.images import Images
from decant.data.parquet import TableWriter
from decant.data.tables import iter_images, read_labels, read_places

ROWS_PER_GROUP = 1000  # as `datasets` itself writes images: its viewers and streaming readers fetch one group at a time
AUDIT_COLUMNS = ("id", "stage", "action", "label_received", "label_now", "score", "reason", "path")
_UNSAFE = re.compile(r"[^\w .+-]")  # \w knows letters of all scripts
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for itself


def write_huggingface(path: Path, table: Path) -> int:
    """Writes the Images table `table` as Hugging Face Parquet; returns the number of rows. Deterministic bytes."""
    _, _, info = read_labels(table)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": list(info.class_names), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    schema = pa.schema([("id", pa.int64()), ("image", image), ("label", pa.int64())], metadata=metadata)
    rows = 0
    with TableWriter(path, schema) as writer:
        for images in _pieces(table):
            encoded = pa.array([png(pixels) for pixels in images.pixels], pa.binary())
            paths = pa.array([f"{row_id}.png" for row_id in images.ids], pa.string())
            columns = pa.StructArray.from_arrays([encoded, paths], fields=list(image))
            writer.write(pa.array(images.ids), columns, pa.array(images.labels.astype(np.int64)))
            rows += len(images)
    return rows


def write_image_folder(folder: Path, table: Path) -> int:
    """Writes the Images table `table` as `folder/<class>/<id>.png`; returns the number of files."""
    _, _, info = read_labels(table)
    names = folder_names(info.class_names)
    files = 0
    for images in _pieces(table):
        for row_id, pixels, label in zip(images.ids, images.pixels, images.labels, strict=True):
            file = folder / names[label] / f"{row_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(pixels))
            files += 1
    return files


def _pieces(table: Path) -> Iterator[Images]:
    for images in iter_images(table):
        for start in range(0, len(images), ROWS_PER_GROUP):
            yield images.select(np.arange(start, min(start + ROWS_PER_GROUP, len(images))))


def png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Encodes one image, gray or RGB, as a PNG file."""
    contents = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(contents, "PNG")
    return contents.getvalue()


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Makes a folder name of each class name: characters that some file system refuses become `_`, none is there twice.

    >>> folder_names(("T-shirt/top", "T-shirt:top", ".."))
    ['T-shirt_top', 'T-shirt_top-2', '__']
    """
    taken: set[str] = set()
    names = []
    for class_name in class_names:
        name = _UNSAFE.sub("_", class_name)[:100].strip(" ")
        name = "_" * len(name) if not name.strip(".") else name  # "", "." and ".." lead out of the folder
        name = re.sub(r"^\.|\.$", "_", name) or "_"
        name = f"{name}_" if _RESERVED.fullmatch(name) else name
        number, candidate = 2, name
        while candidate.casefold() in taken:  # some file systems don't tell upper case from lower case
            number, candidate = number + 1, f"{name}-{number}"
        taken.add(candidate.casefold())
        names.append(candidate)
    return names


def audit(verdicts: list[pd.DataFrame], received: Path, cleaned: Path, places: Path) -> pd.DataFrame:
    """Lists every row and stage where something was flagged or changed, one line each, with labels as class names.

    label_received: as the data came in. label_now: in the cleaned dataset; empty for a row that is not in it. path:
    where in the source a person finds the row.
    """
    ids, labels, info = read_labels(received)
    names = pd.Series(info.class_names, dtype="str")
    before = pd.Series(names.iloc[labels].to_numpy(), index=ids, dtype="str")
    ids, labels, _ = read_labels(cleaned)
    after = pd.Series(names.iloc[labels].to_numpy(), index=ids, dtype="str")
    lines = pd.concat([frame[frame["flagged"] | (frame["action"] != "keep")] for frame in verdicts], ignore_index=True)
    lines = lines.sort_values("id", kind="stable")  # within a row, the stages stay in their order
    lines["label_received"] = lines["id"].map(before)
    lines["label_now"] = lines["id"].map(after).fillna("")
    lines["path"] = lines["id"].map(read_places(places))
    return lines[list(AUDIT_COLUMNS)].reset_index(drop=True)
