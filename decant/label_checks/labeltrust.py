"""LabelTrust (USENIX Security 2024), through the interface of its rivals.

A Siamese network learns from the references whether two pictures show the same class, and a row's label is trusted if
the row looks like the references of that label. `decant.labeltrust.verify` is given the case's references; the expert
answers nothing else, and there are no rounds of review. ``mode: plus`` is ours and the default, ``paper`` is the
paper's (no self-training, a threshold on the mean sigmoid).

    suspicion(x, l) = 1 - trust(x, l)

Cost: `steps` + 2 x `passes` x 1 to 3 `steps` small training steps, more with more rows
(`decant.labeltrust.self_training`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from decant.data.images import Images
from decant.label_checks.base import CheckCase, CheckResult, require_references
from decant.labeltrust.decisions import Asked
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import verify
from decant.settings import Block, Count, Fraction, Positive, Rate


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    mode: Literal["plus", "paper"] = "plus"
    steps: Positive = 200
    passes: Count = 1
    threshold: Fraction | Rate = 0.5


class ReferencesOnly:
    """An expert who knows the right labels of the references and nothing else."""

    def __init__(self, images: Images, rows: np.ndarray, answers: np.ndarray):
        self._answers = dict(zip(images.ids[rows].tolist(), answers.tolist(), strict=True))

    def ask(self, ids: Int[np.ndarray, " m"]) -> dict[int, int]:
        """Right labels of the references among the ids."""
        return {int(row): self._answers[int(row)] for row in ids if int(row) in self._answers}

    def on_file(self) -> dict[int, Asked]:
        """All references, as answered before."""
        return dict.fromkeys(self._answers, Asked())


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag rows with a trust below the threshold."""
    require_references(case, "labeltrust")
    expert = ReferencesOnly(case.images, case.references, case.answers)
    chosen = VerifySettings(
        mode=settings.mode,
        rounds=0,
        references=0,  # no row is drawn beside the case's references
        steps=settings.steps,
        passes=settings.passes,
        threshold=settings.threshold,
    )
    outcome = verify(case.images, expert, chosen, seed=case.seed)
    verdicts = outcome.verdicts
    flagged = verdicts["flagged"].to_numpy(bool)
    suggested = verdicts["suggested_label"].fillna(-1).to_numpy(np.int64)
    return CheckResult(
        suspicion=verdicts["score"].to_numpy(),
        flagged=flagged,
        suggested=np.where(flagged, suggested, case.images.labels),
        note=f"{flagged.sum()} rows below a trust of {outcome.threshold or 0:.2f}; {settings.mode}",
    )
