"""baseline: the models to compare with, trained on the data as received and on the same rows never poisoned.

The second, the *oracle*, is what a perfect cleaning could reach; it exists only where a simulation knows the originals.
"""

from pathlib import Path
from typing import Any

from decant import networks
from decant.runtime import Progress, be_deterministic
from decant.settings import TrainSettings
from decant.tables import read_images
from decant.training import architecture_of, steps_of, train_classifier


def run(*, seed: int, train: TrainSettings, original: Path, received: Path, out: Path) -> dict[str, Any]:
    be_deterministic()
    models = {"received": read_images(received), "oracle": read_images(original)}
    progress = Progress("baseline", sum(steps_of(images, train) for images in models.values()))
    for name, images in models.items():
        model = train_classifier(images, train, seed=seed, on_step=progress.step)
        networks.save(out / f"{name}.safetensors", model, architecture_of(images, train))
    rows = len(models["received"])
    return {"rows_in": rows, "rows_out": rows, "note": f"trained on {rows} rows as received, and on their originals"}
