"""simulate: plant poison for an experiment, and write down the truth about it.

With ``simulate.attacks: []`` the data passes through untouched.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from decant.attacks.base import Attack, load_attacks
from decant.attacks.settings import SimulateSettings
from decant.data.images import Images, concat_images
from decant.data.tables import TRUTH, read_images, write_images, write_truth
from decant.streams import stream
from decant.summaries import SimulateSummary


def run(*, seed: int, simulate: SimulateSettings, train: Path, test: Path, out: Path) -> SimulateSummary:
    received, clean_test = read_images(train), read_images(test)
    rng = stream(seed, "simulate")
    attacks = [attack.prepared(received, clean_test, rng) for attack in load_attacks(simulate.attacks)]
    poisoned, truth = plant(received, attacks, rng)
    triggered, affected = triggered_rows(clean_test, attacks, simulate.affected_points, rng)
    write_images(out / "train.parquet", poisoned)
    write_truth(out / "truth.parquet", truth)
    write_images(out / "triggered.parquet", triggered)
    write_images(out / "affected.parquet", affected)
    counts = {attack.name: int((truth["attack"] == attack.name).sum()) for attack in attacks}
    planted = ", ".join(f"{name} on {count} rows" for name, count in counts.items())
    return SimulateSummary(
        rows_in=len(received),
        rows_out=len(poisoned),
        attacks=counts,
        triggered=len(triggered),
        affected_points=len(affected),
        note=f"planted {planted}" if attacks else "no attacks asked for: the data passes through as it is",
    )


def plant(images: Images, attacks: list[Attack], rng: np.random.Generator) -> tuple[Images, pd.DataFrame]:
    """The poisoned images, and the Truth table: one line per row and attack that changed it."""
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
    """(triggered rows to measure with, affected points that a user would have met); no row is in both, but for the one
    image of an attack that has a single target: there is nothing else to measure it by."""
    triggered = [rows for attack in attacks if (rows := attack.trigger(test, rng)) is not None]
    every = concat_images([*triggered, test.select(np.zeros(len(test), bool))])
    lone = np.repeat([len(rows) == 1 for rows in triggered], [len(rows) for rows in triggered]).astype(bool)
    affected = np.zeros(len(every), bool)
    affected[rng.permutation(len(every))[:affected_points]] = True
    if affected_points:
        affected |= lone
    return every.select(~affected | lone), every.select(affected)
