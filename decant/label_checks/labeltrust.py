"""LabelTrust, ours: a Siamese network that learns from the references which pictures show the same class.

`decant.labeltrust.verify` through the interface of its rivals: it is given the case's references, the expert answers nothing
else, and there are no rounds of review. ``mode: plus`` is the default, ``paper`` is the paper's (no self-training, a
threshold on the mean sigmoid).

    suspicion(x, l) = 1 - trust(x, l)

Cost: `steps` + 2 x passes x 1 to 3 `steps` small training steps, the more the more rows there are (`decant.labeltrust.self_training`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

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


class References:
    """An expert who knows the references and nothing else."""

    def __init__(self, images: Images, rows: np.ndarray, answers: np.ndarray):
        self._answers = dict(zip(images.ids[rows].tolist(), answers.tolist(), strict=True))

    def ask(self, ids: np.ndarray) -> dict[int, int]:
        return {int(row): self._answers[int(row)] for row in ids if int(row) in self._answers}

    def on_file(self) -> dict[int, Asked]:
        return dict.fromkeys(self._answers, Asked())


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    require_references(case, "labeltrust")
    expert = References(case.images, case.references, case.answers)
    chosen = VerifySettings(
        mode=settings.mode,
        rounds=0,
        references=0,  # none is drawn: the case's are all that somebody has answered
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
