"""purify_2: D-VAE's second stage. Fits on the first one's output at a larger rate; its reconstruction is the result.

Then it tests whether the data carries a shortcut at all (`purify.when: auto`): where there is no sign of one, every row
keeps the pixels that it came with. The verdicts score each row by how well the residual predicts its label, and flag
those that seem to carry a perturbation. They never drop a row.

Any other method (`purify.method`) purifies all rows here, in memory, as `decant.purify.methods.base.clean` does; the
tests of the residual are made for D-VAE's, so no row is scored or flagged.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from decant.data.tables import iter_images, read_labels, sample_images, write_verdicts
from decant.errors import TableError
from decant.purify.decision import PurifyDecision, as_verdicts, decide, note_of, write_chosen
from decant.purify.methods.base import cleaned_parts
from decant.purify.settings import PurifySettings, SecondPurifyStageSettings
from decant.purify.two_stage import Inference, Parts, PurifyStage, fit, untouched, write_parts
from decant.runtime import Progress, be_deterministic
from decant.streams import child
from decant.summaries import Purify1Summary, Purify2Summary


def run(
    *,
    seed: int,
    purify: PurifySettings,
    purify_2: SecondPurifyStageSettings,
    first_dir: Path,
    received: Path,
    out: Path,
) -> Purify2Summary:
    be_deterministic()
    first, everything = first_dir / "train.parquet", out / "purified.parquet"
    ids = same_ids(received, first)
    go_on = Purify1Summary.read(first_dir).go_on
    parts = purified_parts(seed, purify, purify_2, first) if go_on else untouched(first)
    write_parts(parts, everything, out / "perturbations.parquet")
    decision = decide(seed, purify, received, everything) if go_on else PurifyDecision.of_all(len(ids), purified=False)
    changes = write_chosen(received, everything, decision.purified, out / "train.parquet")
    everything.unlink()
    write_verdicts(out / "verdicts.parquet", as_verdicts(ids, decision, changes))
    return Purify2Summary(
        rows_in=len(ids),
        rows_out=len(ids),
        flagged=int(decision.flagged.sum()),
        purified=int(decision.purified.sum()),
        changed_rms=round(float(changes.mean()), 2),
        note=note_of(purify.method, go_on, decision, float(changes.mean())),
    )


def same_ids(received: Path, first: Path) -> Int[np.ndarray, " n"]:
    """The ids of both tables. Raises: TableError where they hold different rows, or the same in another order."""
    (ids, _, _), (first_ids, _, _) = read_labels(received), read_labels(first)
    if not np.array_equal(ids, first_ids):
        raise TableError(f"{first}: the rows of {received} in their order expected, others found; run purify_1 again")
    return ids


def purified_parts(seed: int, purify: PurifySettings, purify_2: SecondPurifyStageSettings, first: Path) -> Parts:
    """Every row purified: by D-VAE's second stage, fitted on a sample, or by the method that was asked for."""
    if purify.method != "dvae":
        return cleaned_parts(purify.method, first, seed=seed)
    own_seed = child(seed, "purify_2")
    sample = sample_images(first, purify.sample, seed=own_seed)
    stage = PurifyStage.of(purify, purify_2, sample)
    progress = Progress("purify_2", stage.steps(len(sample)))
    inference = Inference(fit(sample, stage, seed=own_seed, on_step=progress.step), own_seed)
    return (inference.second_stage(part) for part in iter_images(first))
