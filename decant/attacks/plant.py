"""Plants several attacks into a dataset, and writes down the truth about it."""

import numpy as np
import pandas as pd

from decant.attacks.base import Attack
from decant.data.images import Images, concat_images
from decant.data.tables import TRUTH


def plant(images: Images, attacks: list[Attack], rng: np.random.Generator) -> tuple[Images, pd.DataFrame]:
    """Poisons the images by one attack after the other.

    Returns: the poisoned images, and the Truth table: one line per row and attack that changed it.
    """
    original = images.labels
    taken = np.zeros(len(images), bool)
    lines = [pd.DataFrame({name: [] for name in TRUTH.names})]
    for attack in attacks:
        result = attack.poison(images, rng, taken)
        images = result.images
        if attack.takes_rows:
            taken |= result.rows
        ids = images.ids[result.rows]
        lines.append(pd.DataFrame({"id": ids, "attack": attack.name, "original_label": original[result.rows]}))
    truth = pd.concat([line for line in lines if len(line)] or lines, ignore_index=True)
    return images, truth.astype({"id": "int64", "attack": "str", "original_label": "int32"})


def triggered_rows(
    test: Images, attacks: list[Attack], affected_points: int, rng: np.random.Generator
) -> tuple[Images, Images]:
    """Puts the attacks' triggers on test images.

    Returns: (rows to measure poison success with, affected points that a user would have met). No row is in both, but
    for the one image of an attack with a single target, as nothing else can measure that.
    """
    triggered = [rows for attack in attacks if (rows := attack.trigger(test, rng)) is not None]
    every = concat_images([*triggered, test.select(np.zeros(len(test), bool))])
    single = np.repeat([len(rows) == 1 for rows in triggered], [len(rows) for rows in triggered]).astype(bool)
    affected = np.zeros(len(every), bool)
    affected[rng.permutation(len(every))[:affected_points]] = True
    if affected_points:
        affected |= single
    return every.select(~affected | single), every.select(affected)
