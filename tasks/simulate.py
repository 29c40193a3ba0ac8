"""simulate: plant poison for an experiment, and write down the truth about it.

With ``simulate.attacks: []`` the data passes through untouched.
"""

from pathlib import Path

from decant.attacks.base import load_attacks
from decant.attacks.plant import plant, triggered_rows
from decant.attacks.settings import SimulateSettings
from decant.data.tables import read_images, write_images, write_truth
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
