"""train: a model on the rows that purification and label verification left."""

from pathlib import Path

from decant.data.tables import read_images
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, steps_of, train_classifier
from decant.runtime import Progress, be_deterministic
from decant.summaries import TrainSummary


def run(*, seed: int, train: TrainSettings, images: Path, out: Path) -> TrainSummary:
    be_deterministic()
    rows = read_images(images)
    progress = Progress("train", steps_of(len(rows), train))
    model = train_classifier(rows, train, seed=seed, on_step=progress.step)
    networks.save(out / "model.safetensors", model, architecture_of(rows, train))
    note = f"trained {train.network} on {len(rows)} rows"
    return TrainSummary(rows_in=len(rows), rows_out=len(rows), network=train.network, note=note)
