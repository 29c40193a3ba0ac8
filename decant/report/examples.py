"""One row of each class on its way through purification, with the perturbations that were removed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8

from decant.data.images import Images, concat_images
from decant.data.tables import iter_images, iter_perturbations
from decant.paths import PURIFIED, RECEIVED, perturbations_file, within

CLASSES_SHOWN = 10

Pixels = UInt8[np.ndarray, "h w c"]
Perturbation = Float[np.ndarray, "h w c"]
"""In [-1, 1]: received less purified, pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row before and after purification, and what was removed from it."""

    row_id: int
    label: int
    received: Pixels
    perturbations: Sequence[Perturbation]
    """What each of the two stages removed from this row."""
    purified: Pixels
    class_mean: Perturbation
    """What both stages removed, averaged over the class: a pattern that is keyed to a label stands out."""


def examples(data: Path, labels: "pd.Series[int]", suspicion: "pd.Series[float]") -> list[Example]:
    """An example of each of up to CLASSES_SHOWN classes, spread evenly over the classes.

    data: the folder of the stages' folders; labels: id to label as received. suspicion: id to the score that `verify`
    gave; a class is shown by the row whose label is trusted most, so that a wrong label is not what one looks at.
    """
    classes = np.unique(labels)
    shown = classes[np.linspace(0, len(classes) - 1, min(CLASSES_SHOWN, len(classes))).round().astype(int)]
    ranked = labels.loc[suspicion.sort_index().sort_values(kind="stable").index]
    ids = np.array([ranked.index[ranked == label][0] for label in shown])
    before, after = rows_of(within(data, RECEIVED), ids), rows_of(within(data, PURIFIED), ids)
    first = _perturbations(perturbations_file("purify_1", data), ids, labels)
    second = _perturbations(perturbations_file("purify_2", data), ids, labels)
    return [
        Example(
            row_id=int(row_id),
            label=int(label),
            received=before.pixels[i],
            perturbations=(first.of_row[row_id], second.of_row[row_id]),
            purified=after.pixels[i],
            class_mean=first.class_mean[label] + second.class_mean[label],
        )
        for i, (label, row_id) in enumerate(zip(shown, ids, strict=True))
    ]


def rows_of(path: Path, ids: Int[np.ndarray, " n"]) -> Images:
    """The rows of an Images table with those ids, in their order; one row group in memory at a time."""
    found = concat_images([rows.select(np.isin(rows.ids, ids)) for rows in iter_images(path)])
    order = pd.Series(np.arange(len(found)), index=found.ids).loc[ids]
    return found.select(order.to_numpy())


@dataclass(frozen=True)
class _Perturbations:
    of_row: dict[int, Perturbation]
    class_mean: Float[np.ndarray, "classes h w c"]


def _perturbations(path: Path, ids: Int[np.ndarray, " n"], labels: "pd.Series[int]") -> _Perturbations:
    """Of the rows with those ids, and the mean of every class; one row group in memory at a time."""
    of_row: dict[int, Perturbation] = {}
    sums: Float[np.ndarray, "classes h w c"] | None = None
    rows_per_class = np.bincount(labels)
    for part_ids, part in iter_perturbations(path):
        if sums is None:
            sums = np.zeros((len(rows_per_class), *part.shape[1:]))
        np.add.at(sums, labels.loc[part_ids].to_numpy(), part)
        of_row |= {int(part_ids[i]): part[i] for i in np.flatnonzero(np.isin(part_ids, ids))}
    assert sums is not None, "a dataset has rows"
    return _Perturbations(of_row, sums / np.maximum(1, rows_per_class)[:, None, None, None])
