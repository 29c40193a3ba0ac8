"""Small loss: a network fits right labels before wrong ones, so a row with a large loss has a suspicious label.

The idea of Co-teaching (Han et al., NeurIPS 2018) and many others. The rows are divided as in DivideMix (Li et al.,
ICLR 2020): a mixture of two Gaussians is fitted to the losses, and a row is flagged if it more likely belongs to the
one with the larger mean.

    suspicion(x, l) = -log p(l | x)  of the plain classifier, in nats

Changed: one network instead of two, and the mixture is fitted to log losses, which are closer to two Gaussians than
losses (the paper normalises them to [0, 1]). It fails where the network has memorised the wrong labels, so
`train.epochs` must be few.

Cost: the plain classifier.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.mixture import GaussianMixture

from decant.label_checks.base import CheckCase, CheckResult, cross_entropies
from decant.settings import Block
from decant.streams import child

FLOOR = 1e-4  # nats; smaller losses count as this one


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    pass


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag the rows of the mixture's component of large losses."""
    losses = cross_entropies(case.logits, case.images.labels)
    flagged = larger_of_two(losses, seed=child(case.seed, "loss", "mixture"))
    return CheckResult(
        suspicion=losses,
        flagged=flagged,
        suggested=case.logits.argmax(1),
        note=f"{flagged.sum()} rows belong to the component of large losses of a mixture of two",
    )


def larger_of_two(losses: Float[np.ndarray, " n"], *, seed: int) -> Bool[np.ndarray, " n"]:
    """The rows that a mixture of two Gaussians over log losses assigns to the one with the larger mean.

    A wide Gaussian may also reach below a narrow one: rows below the smaller mean are left out.
    """
    values = np.log(np.maximum(losses, FLOOR))[:, None]
    mixture = GaussianMixture(2, random_state=seed, reg_covar=1e-3).fit(values)
    large = mixture.predict(values) == mixture.means_[:, 0].argmax()
    return large & (values[:, 0] > mixture.means_.min())
