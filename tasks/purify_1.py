"""purify_1: D-VAE's first stage. Fits at a small rate, subtracts the perturbation that it finds."""

from pathlib import Path
from typing import Any

import numpy as np

from decant import dvae
from decant.runtime import Progress, be_deterministic
from decant.settings import PurifySettings
from decant.tables import read_images, write_images, write_perturbations


def run(*, seed: int, purify_1: PurifySettings, images: Path, out: Path) -> dict[str, Any]:
    received = read_images(images)
    summary = {"rows_in": len(received), "rows_out": len(received)}
    if not purify_1.enabled:
        write_images(out / "train.parquet", received)
        write_perturbations(out / "perturbations.parquet", received.ids, np.zeros(received.pixels.shape, np.float16))
        return {**summary, "note": "switched off: the pixels pass through as they are"}
    be_deterministic()
    progress = Progress("purify_1", dvae.steps_of(received, purify_1))
    model = dvae.fit(received, purify_1, seed=seed, on_step=progress.step)
    subtracted, perturbations = dvae.first_stage(model, received, seed=seed)
    write_images(out / "train.parquet", subtracted)
    write_perturbations(out / "perturbations.parquet", received.ids, perturbations)
    rms = 255 * float(np.sqrt((perturbations.astype(np.float32) ** 2).mean()))
    note = f"subtracted a perturbation of {rms:.1f} grey levels RMS from {len(received)} rows"
    return {**summary, "perturbation_rms": round(rms, 2), "note": note}
