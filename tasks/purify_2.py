"""purify_2: D-VAE's second stage. Fits on the first one's output at a larger rate; its reconstruction is the result.

Then it asks whether the data carries a shortcut at all (`purify.when: auto`): where there is no evidence of one, every
row keeps the pixels that it came with. The verdicts score each row by how well its label can be read from what
purification would take off, and flag those that seem to carry a perturbation. They never drop a row.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from decant.data.images import Images
from decant.data.tables import images_writer, iter_images, read_labels, sample_images, write_verdicts
from decant.purify.gate import RowScorer, ShortcutTest, probe_sample, reliance, row_threshold
from decant.purify.settings import PurifySettings, SecondPurifyStageSettings
from decant.purify.two_stage import Inference, PurifyStage, fit, untouched, write_parts
from decant.runtime import Progress, be_deterministic
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
    first, x3 = first_dir / "train.parquet", out / "purified.parquet"  # x3 of all rows, until it is decided who gets it
    go_on = Purify1Summary.read(first_dir).go_on
    parts = second_stage(seed, purify, purify_2, first) if go_on else untouched(first)
    rows, _ = write_parts(parts, x3, out / "perturbations.parquet")
    evidence, scores, threshold = judge(seed, purify, received, x3) if go_on else (None, np.zeros(rows), 0.0)
    found = go_on and (evidence is None or evidence.found)
    flagged = (scores >= threshold) & found
    purified = flagged if purify.rows == "flagged" else np.full(rows, found)
    changes = write_chosen(received, x3, purified, out / "train.parquet")
    x3.unlink()
    ids, _, _ = read_labels(received)
    write_verdicts(out / "verdicts.parquet", as_verdicts(ids, scores, flagged, changes))
    counts = {"flagged": int(flagged.sum()), "purified": int(purified.sum())}
    return Purify2Summary(
        rows_in=rows,
        rows_out=rows,
        **counts,
        changed_rms=round(float(changes.mean()), 2),
        note=note(evidence, go_on, **counts, rms=float(changes.mean())),
    )


def second_stage(
    seed: int, purify: PurifySettings, purify_2: SecondPurifyStageSettings, first: Path
) -> Iterator[tuple[Images, np.ndarray]]:
    sample = sample_images(first, purify.sample, seed=seed)
    stage = PurifyStage.of(purify, purify_2, sample)
    progress = Progress("purify_2", stage.steps(len(sample)))
    inference = Inference(fit(sample, stage, seed=seed + 1, on_step=progress.step), seed + 1)
    return (inference.second_stage(part) for part in iter_images(first))


def judge(
    seed: int, purify: PurifySettings, received: Path, purified: Path
) -> tuple[ShortcutTest | None, np.ndarray, float]:
    """(evidence of a shortcut, None when nobody asks for it; each row's score; the score from which it is flagged)"""
    x, x3 = (probe_sample(path, seed=seed) for path in (received, purified))
    evidence = reliance(x, x3, seed=seed) if purify.when == "auto" else None
    scorer = RowScorer.fit(x, x3, seed=seed)
    pairs = zip(iter_images(received), iter_images(purified), strict=True)
    scores = np.concatenate([scorer(before, after) for before, after in pairs])
    return evidence, scores, row_threshold(scores)


def write_chosen(received: Path, purified: Path, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Writes purified pixels where `wanted` (n,) bool, else those received; returns each row's RMS change in levels."""
    example = next(iter_images(received))
    changes, start = [], 0
    with images_writer(path, example.shape, example.info) as writer:
        for before, after in zip(iter_images(received), iter_images(purified), strict=True):
            chosen = wanted[start : start + len(before), None, None, None]
            result = before.with_pixels(np.where(chosen, after.pixels, before.pixels))
            writer.write_images(result)
            changes.append(np.sqrt(((result.pixels.astype(np.float32) - before.pixels) ** 2).mean((1, 2, 3))))
            start += len(before)
    return np.concatenate(changes)


def as_verdicts(ids: np.ndarray, scores: np.ndarray, flagged: np.ndarray, changes: np.ndarray) -> pd.DataFrame:
    """A Verdicts table that keeps every row."""
    carries = pd.Series(flagged).map({True: "what was taken off tells its label; ", False: ""})
    pixels = pd.Series(changes).map(lambda rms: f"pixels purified by {rms:.1f} grey levels RMS" if rms else "untouched")
    return pd.DataFrame(
        {
            "id": ids,
            "stage": "purify_2",
            "score": scores.astype(np.float32),
            "flagged": flagged,
            "action": np.where(changes > 0, "purify", "keep"),
            "reason": carries + pixels,
        }
    )


def note(evidence: ShortcutTest | None, go_on: bool, flagged: int, purified: int, rms: float) -> str:
    if not go_on:
        return "as purify_1 decided, the pixels pass through as they are"
    said = f"{evidence}; " if evidence else ""
    if not purified:
        return f"{said}no shortcut found: every row keeps its pixels"
    return f"{said}purified {purified} rows by {rms:.1f} grey levels RMS; {flagged} seem to carry a perturbation"
