"""Small loss: a network fits right labels before wrong ones, so a row with a large loss has a suspicious label.

The oldest idea of them all, in Co-teaching (Han et al. 2018) and many others. The rule that divides the rows is that of
DivideMix (Li et al., ICLR 2020): a mixture of two Gaussians over the losses; a row is flagged if it rather belongs to
the one of the larger mean.

    suspicion(x, l) = -log p(l | x)  of the plain classifier, in nats

Changed: one network instead of two, and the mixture is fitted to log losses, which are nearer to two Gaussians than
losses (the paper normalises them to [0, 1]). Where the network memorises the wrong labels, this fails: what counts is
that `train.epochs` is short.

Cost: the plain classifier.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.mixture import GaussianMixture

from decant.label_checks.base import CheckCase, CheckResult, cross_entropies
from decant.settings import Block

FLOOR = 1e-4  # nats; smaller losses are all the same


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    losses = cross_entropies(case.logits, case.images.labels)
    flagged = larger_of_two(losses, seed=case.seed)
    return CheckResult(
        suspicion=losses,
        flagged=flagged,
        suggested=case.logits.argmax(1),
        note=f"{flagged.sum()} rows belong to the component of large losses of a mixture of two",
    )


def larger_of_two(losses: np.ndarray, *, seed: int) -> np.ndarray:
    """(n,) bool: the rows that rather belong to the Gaussian of the larger mean, by their log losses; and none whose
    loss is below that of a row of the other one, as a wide Gaussian may reach below a narrow one."""
    values = np.log(np.maximum(losses, FLOOR))[:, None]
    mixture = GaussianMixture(2, random_state=seed, reg_covar=1e-3).fit(values)
    large = mixture.predict(values) == mixture.means_[:, 0].argmax()
    return large & (values[:, 0] > mixture.means_.min())
