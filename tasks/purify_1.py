"""purify_1: D-VAE's first stage. Fits at a small rate, subtracts the perturbation that it finds.

With clean rows to compare with (`ingest.probe`) and `purify.when: auto`, it first tests whether there is anything to
purify, and passes the rows on as they are when there is not; `purify_2` then does the same. Other methods than D-VAE
(`purify.method`) have one stage, which is `purify_2`: this one passes the rows on.
"""

from pathlib import Path

from decant.data.tables import count_rows, iter_images, read_images, sample_images
from decant.purify.gate import ShortcutTest, probe_gap, probe_sample
from decant.purify.settings import PurifySettings, PurifyStageSettings
from decant.purify.two_stage import Inference, PurifyStage, fit, untouched, write_parts
from decant.runtime import Progress, be_deterministic
from decant.streams import child
from decant.summaries import Purify1Summary


def run(
    *, seed: int, purify: PurifySettings, purify_1: PurifyStageSettings, images: Path, probe: Path, out: Path
) -> Purify1Summary:
    be_deterministic()
    test = compare_with_clean_rows(purify, images, probe, seed)
    if purify.when == "never":
        return pass_on(images, out, go_on=False, note="switched off: your pixels are untouched")
    if test and not test.found:
        return pass_on(images, out, go_on=False, note=f"{test}: your pixels are untouched")
    prefix = f"{test}; " if test else ""
    if purify.method != "dvae":
        return pass_on(images, out, go_on=True, note=f"{prefix}{purify.method} has one stage, purify_2")
    own_seed = child(seed, "purify_1")
    sample = sample_images(images, purify.sample, seed=own_seed)
    stage = PurifyStage.of(purify, purify_1, sample)
    progress = Progress("purify_1", stage.steps(len(sample)))
    inference = Inference(fit(sample, stage, seed=own_seed, on_step=progress.step), own_seed)
    del sample
    parts = (inference.first_stage(part) for part in iter_images(images))
    rows, rms = write_parts(parts, out / "train.parquet", out / "perturbations.parquet")
    then = "purify_2 tests whether to remove it" if purify.when == "auto" else "purify_2 removes it"
    note = f"{prefix}estimated a perturbation of {rms:.1f} grey levels RMS on {rows} rows; {then}"
    return Purify1Summary(rows_in=rows, rows_out=rows, go_on=True, perturbation_rms=round(rms, 2), note=note)


def pass_on(images: Path, out: Path, *, go_on: bool, note: str) -> Purify1Summary:
    """Writes the rows as they are, with perturbations of zero."""
    rows, _ = write_parts(untouched(images), out / "train.parquet", out / "perturbations.parquet")
    return Purify1Summary(rows_in=rows, rows_out=rows, go_on=go_on, note=note)


def compare_with_clean_rows(purify: PurifySettings, images: Path, probe: Path, seed: int) -> ShortcutTest | None:
    """The probe gap; None where there are no clean rows or `purify.when` asks for no test."""
    if purify.when != "auto" or not count_rows(probe):
        return None
    return probe_gap(probe_sample(images, seed=seed), read_images(probe), seed=seed)
