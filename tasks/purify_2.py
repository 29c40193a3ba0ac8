"""purify_2: D-VAE's second stage. Fits on the first one's output at a larger rate; its reconstruction is the result.

Its verdicts say how much of each row's pixels both stages together changed. They never drop a row.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decant import dvae
from decant.runtime import Progress, be_deterministic
from decant.settings import PurifySettings
from decant.tables import Images, read_images, write_images, write_perturbations, write_verdicts


def run(*, seed: int, purify_2: PurifySettings, images: Path, received: Path, out: Path) -> dict[str, Any]:
    first, original = read_images(images), read_images(received)
    purified, perturbations = first, np.zeros(first.pixels.shape, np.float16)
    if purify_2.enabled:
        be_deterministic()
        progress = Progress("purify_2", dvae.steps_of(first, purify_2))
        model = dvae.fit(first, purify_2, seed=seed + 1, on_step=progress.step)
        purified, perturbations = dvae.second_stage(model, first, seed=seed + 1)
    verdicts = changed_rows(original, purified)
    write_images(out / "train.parquet", purified)
    write_perturbations(out / "perturbations.parquet", first.ids, perturbations)
    write_verdicts(out / "verdicts.parquet", verdicts)
    changed, rms = int(verdicts["flagged"].sum()), float(verdicts["score"].mean())
    note = f"purified {changed} rows; both stages changed {rms:.1f} grey levels RMS on average"
    return {
        "rows_in": len(first),
        "rows_out": len(purified),
        "flagged": changed,
        "changed_rms": round(rms, 2),
        "note": note if purify_2.enabled else "switched off: the pixels pass through as they are",
    }


def changed_rows(received: Images, purified: Images) -> pd.DataFrame:
    """Verdicts: score = RMS over a row's pixels of (purified - received), in grey levels; flagged where any changed."""
    difference = purified.pixels.astype(np.float32) - received.pixels
    rms = np.sqrt((difference**2).mean((1, 2, 3)))
    return pd.DataFrame(
        {
            "id": received.ids,
            "stage": "purify_2",
            "score": rms.astype(np.float32),
            "flagged": rms > 0,
            "action": "keep",
            "suggested_label": pd.array([None] * len(rms), dtype="Int32"),
            "reason": [f"pixels purified by {value:.1f} grey levels RMS" if value else "untouched" for value in rms],
        }
    )
