"""LabelTrust (USENIX Security 2024), through the interface of its rivals.

A prediction is trusted if the picture looks like the references of the predicted class. This is
`decant.labeltrust.scorer.TrustScorer` fitted to the references alone: it sees neither the classifier nor its training
rows. ``mode: plus`` is ours and the default, ``paper`` is the paper's.

    confidence(x, l) = trust(x, l);  0 for a class without references

Cost: three networks of `steps` small steps (`mode: paper`: one).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from decant.confidence.base import ConfidenceCase
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    mode: Literal["plus", "paper"] = "plus"
    steps: Positive = 200
    prior: Literal["uniform", "batch"] = "uniform"
    """What is known of the predictions (`decant.labeltrust.prior`); `batch` estimates how often they are right."""


def fit_and_score(case: ConfidenceCase, settings: Settings) -> Float[np.ndarray, " m"]:
    """Fit a trust scorer to the references and score every prediction."""
    chosen = VerifySettings(mode=settings.mode, steps=settings.steps)
    scorer = TrustScorer.fit(case.trusted, settings=chosen, seed=case.seed)
    return np.nan_to_num(scorer.score(case.pixels, case.predicted, prior=settings.prior), nan=0.0)
