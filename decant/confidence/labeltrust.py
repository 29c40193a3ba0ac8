"""LabelTrust, ours: does the picture look like the references of the class that was predicted for it?

`decant.labeltrust.scorer.TrustScorer` through the interface of its rivals, fitted to the references alone: it sees neither the
classifier nor its training rows.

    confidence(x, l) = trust(x, l);  0 for a class without references

Cost: three networks of `steps` small steps (`mode: paper`: one).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from decant.confidence.base import ConfidenceCase
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    mode: Literal["plus", "paper"] = "plus"
    steps: Positive = 200
    prior: Literal["uniform", "batch"] = "uniform"
    """`batch`: how often predictions are right is estimated from them (`decant.labeltrust.scorer`)."""


def fit_and_score(case: ConfidenceCase, settings: Settings) -> np.ndarray:
    chosen = VerifySettings(mode=settings.mode, steps=settings.steps)
    scorer = TrustScorer.fit(case.trusted, settings=chosen, seed=case.seed)
    return np.nan_to_num(scorer.score(case.pixels, case.predicted, prior=settings.prior), nan=0.0)
