"""purify_1: D-VAE's first stage. Fits at a small rate, subtracts the perturbation that it finds.

With clean rows to compare with (`ingest.probe`) and `purify.when: auto`, it first asks whether there is anything to
purify, and passes the data through when there is not; `purify_2` then does the same.
"""

from pathlib import Path

from decant.data.tables import count_rows, iter_images, read_images, sample_images
from decant.purify.gate import ShortcutTest, probe_gap, probe_sample
from decant.purify.settings import PurifySettings, PurifyStageSettings
from decant.purify.two_stage import Inference, PurifyStage, fit, untouched, write_parts
from decant.runtime import Progress, be_deterministic
from decant.summaries import Purify1Summary


def run(
    *, seed: int, purify: PurifySettings, purify_1: PurifyStageSettings, images: Path, probe: Path, out: Path
) -> Purify1Summary:
    be_deterministic()
    evidence = ask_probe(purify, images, probe, seed)
    if purify.when == "never" or (evidence and not evidence.found):
        rows, _ = write_parts(untouched(images), out / "train.parquet", out / "perturbations.parquet")
        why = f"{evidence}: the data is no easier than clean data" if evidence else "switched off"
        note = f"{why}; the pixels pass through as they are"
        return Purify1Summary(rows_in=rows, rows_out=rows, go_on=False, note=note)
    sample = sample_images(images, purify.sample, seed=seed)
    stage = PurifyStage.of(purify, purify_1, sample)
    progress = Progress("purify_1", stage.steps(len(sample)))
    inference = Inference(fit(sample, stage, seed=seed, on_step=progress.step), seed)
    del sample
    parts = (inference.first_stage(part) for part in iter_images(images))
    rows, rms = write_parts(parts, out / "train.parquet", out / "perturbations.parquet")
    note = f"subtracted a perturbation of {rms:.1f} grey levels RMS from {rows} rows"
    note = f"{evidence}; {note}" if evidence else note
    return Purify1Summary(rows_in=rows, rows_out=rows, go_on=True, perturbation_rms=round(rms, 2), note=note)


def ask_probe(purify: PurifySettings, images: Path, probe: Path, seed: int) -> ShortcutTest | None:
    """What clean rows say; None when there are none, or when they are not asked."""
    if purify.when != "auto" or not count_rows(probe):
        return None
    return probe_gap(probe_sample(images, seed=seed), read_images(probe), seed=seed)
