"""unlearn: a model as if the rows that `detect` flagged had never been there.

`unlearn.method: retrain`, the default, trains again from scratch without those rows, so that nothing of their influence
can be left; `auto` tries cheap methods first. The note says what was tried, what was measured and what was taken. Where
nothing was flagged, the trained model is already that model and is kept.
"""

import shutil
from pathlib import Path

import numpy as np

from decant.data.tables import read_images, read_verdicts
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of, steps_of
from decant.runtime import Progress, be_deterministic, device
from decant.summaries import UnlearnSummary
from decant.unlearning.auto import cheapest, measured, remark
from decant.unlearning.base import UnlearningTask, unlearn_with
from decant.unlearning.settings import UnlearnSettings


def run(
    *,
    seed: int,
    unlearn: UnlearnSettings,
    train: TrainSettings,
    images: Path,
    detect_dir: Path,
    model: Path,
    out: Path,
) -> UnlearnSummary:
    verdicts = read_verdicts(detect_dir / "verdicts.parquet")
    rows, kept = read_images(images), read_images(detect_dir / "train.parquet")
    flagged = rows.select(np.isin(rows.ids, verdicts.loc[verdicts["flagged"], "id"]))
    if not unlearn.enabled or not len(flagged):
        shutil.copyfile(model, out / "model.safetensors")
        reason = "switched off" if not unlearn.enabled else "nothing was flagged"
        note = f"{reason}: the trained model is kept"
        return UnlearnSummary(rows_in=len(kept), rows_out=len(kept), unlearned=0, note=note)
    be_deterministic()
    progress = Progress("unlearn", steps_of(len(kept), train))
    trained = networks.load(model)[0].to(device())
    task = UnlearningTask(model=trained, kept=kept, flagged=flagged, train=train, seed=seed, on_step=progress.step)
    affected = read_images(detect_dir / "affected.parquet")
    if unlearn.method == "auto":
        choice = cheapest(task, affected, margin=unlearn.margin)
        result, method, note = choice.model, choice.method, choice.note
    else:
        result, method = unlearn_with(unlearn.method, task).model, unlearn.method
        found = measured(result, task, affected, task.kept)
        note = f"{found}, on the kept rows themselves{remark(found)}"
    networks.save(out / "model.safetensors", result, architecture_of(kept, train))
    return UnlearnSummary(
        rows_in=len(kept),
        rows_out=len(kept),
        unlearned=len(flagged),
        method=method,
        note=f"{method} without the {len(flagged)} flagged rows, on {len(kept)} ({note})",
    )
