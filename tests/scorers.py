"""A fitted scorer that several test files use; trained once per run."""

from functools import cache

import numpy as np
from samples import digits

from decant.data.images import Images
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings

UNKNOWN_CLASS = 9  # which it has no references of


def references(classes: range, count: int = 10) -> Images:
    """Training digits, in mixed order."""
    train, _ = digits()
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(train.labels == label))[:count] for label in classes]
    return train.select(rng.permutation(np.concatenate(rows)))


@cache
def scorer_of_nine() -> TrustScorer:
    """Knows the digits 0 to 8."""
    return TrustScorer.fit(references(range(9)), settings=VerifySettings(steps=60), seed=1)
