"""baseline: the models to compare with, trained on the data as received and on the same rows never poisoned.

The second, the *oracle*, is what a perfect cleaning could reach; it exists only where a simulation has planted poison.
"""

from pathlib import Path

import numpy as np

from decant.data.images import Images
from decant.data.tables import read_images
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, steps_of, train_classifier
from decant.runtime import Progress, be_deterministic
from decant.summaries import BaselineSummary


def run(*, seed: int, train: TrainSettings, original: Path, received: Path, out: Path) -> BaselineSummary:
    be_deterministic()
    rows, originals = read_images(received), read_images(original)
    models = {"received": rows} if untouched(rows, originals) else {"received": rows, "oracle": originals}
    progress = Progress("baseline", sum(steps_of(len(images), train) for images in models.values()))
    for name, images in models.items():
        model = train_classifier(images, train, seed=seed, on_step=progress.step)
        networks.save(out / f"{name}.safetensors", model, architecture_of(images, train))
    note = f"trained on {len(rows)} rows as received" + (", and on their originals" if "oracle" in models else "")
    return BaselineSummary(rows_in=len(rows), rows_out=len(rows), oracle="oracle" in models, note=note)


def untouched(received: Images, original: Images) -> bool:
    """Nothing was planted: what is known of these rows is what was received."""
    return np.array_equal(received.labels, original.labels) and np.array_equal(received.pixels, original.pixels)
