"""unlearn: a model as if the rows that `detect` flagged had never been there.

Exact unlearning: retrained from scratch without them, with the same recipe and seed, so that nothing of their influence
can be left. Where nothing was flagged, the trained model is already that model and is kept.
"""

import shutil
from pathlib import Path
from typing import Any

from decant import networks
from decant.files import read_json
from decant.runtime import Progress, be_deterministic
from decant.settings import TrainSettings, UnlearnSettings
from decant.tables import read_images
from decant.training import architecture_of, steps_of, train_classifier


def run(
    *, seed: int, unlearn: UnlearnSettings, train: TrainSettings, detect_dir: Path, model: Path, out: Path
) -> dict[str, Any]:
    flagged = read_json(detect_dir / "summary.json")["flagged"]
    kept = read_images(detect_dir / "train.parquet")
    summary = {"rows_in": len(kept), "rows_out": len(kept), "unlearned": flagged if unlearn.enabled else 0}
    if not unlearn.enabled or flagged == 0:
        shutil.copyfile(model, out / "model.safetensors")
        reason = "switched off" if not unlearn.enabled else "nothing was flagged"
        return {**summary, "note": f"{reason}: the trained model stays as it is"}
    be_deterministic()
    progress = Progress("unlearn", steps_of(kept, train))
    retrained = train_classifier(kept, train, seed=seed, on_step=progress.step)
    networks.save(out / "model.safetensors", retrained, architecture_of(kept, train))
    return {**summary, "note": f"retrained without the {flagged} flagged rows, on {len(kept)}"}
