"""Thresholds on trust: operating points, target rates, and confidence bounds from rows that an expert saw at random.

An operating point is a threshold with its false-acceptance rate (FAR: wrong labels that are accepted) and its
false-rejection rate (FRR: right labels that are refused). Where trust w is the probability that a label is right
(`decant.labeltrust.label_noise`), both are expected from the trusts alone:

    FAR = sum over accepted rows of (1 - w) / sum over all rows of (1 - w)      the paper's TRR is 1 - FAR
    FRR = sum over refused rows of w / sum over all rows of w

`far=0.001` is the lowest threshold with an expected FAR of at most 0.001, `frr=0.02` the highest with an expected FRR
of at most 0.02. Both are as good as the label-noise model: n rows drawn at random confirm no rate below about 3 / n.
Measured on 12,000 MNIST rows with 10 % wrong labels: `far=0.001` gave TRR 99.75 to 100 % (reference page of the
prototype); `python -m benchmarks label-cleaning` measures it on all 60,000.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy.stats import beta

from decant.summaries import OperatingPoint

CONFIDENCE = 0.95
COMPARED = (0.5, "far=0.01", "far=0.001", "frr=0.01")  # thresholds that are reported beside the chosen one
BINS = 10  # of trust, as usual for the expected calibration error


def parse_threshold(threshold: float | str) -> tuple[Literal["trust", "far", "frr"], float]:
    """Split `verify.threshold`, as `decant.labeltrust.settings` has checked it: a trust, or a target rate."""
    if not isinstance(threshold, str):
        return "trust", float(threshold)
    kind, _, rate = threshold.partition("=")
    return ("far" if kind == "far" else "frr"), float(rate)


def threshold_for(trust: Float[np.ndarray, " n"], threshold: float | str) -> float:
    """The trust from which on a row is accepted, for a threshold as in `verify.threshold`.

    A number is returned as it is; without rows a target rate gives 0.5. Rows of equal trust are accepted or refused
    together, and never at the expense of the target rate.
    """
    kind, rate = parse_threshold(threshold)
    if kind == "trust":
        return rate
    if not len(trust):
        return 0.5
    ordered = np.sort(trust.astype(np.float64))
    if kind == "frr":
        refused = np.concatenate([[0.0], ordered.cumsum()[:-1]])  # expected right rows below each trust
        return float(ordered[np.flatnonzero(refused <= rate * ordered.sum() + 1e-12)[-1]])
    wrong = 1 - ordered
    accepted = wrong[::-1].cumsum()[::-1]  # expected wrong rows from each trust on
    meets = np.flatnonzero(accepted <= rate * wrong.sum() + 1e-12)
    return _smallest_above(ordered, int(meets[0]) if len(meets) else len(ordered))


def _smallest_above(ordered: np.ndarray, first: int) -> float:
    """The smallest trust that accepts no row before `first` of the ascending values."""
    if first == 0:
        return float(ordered[0])
    later = ordered[ordered > ordered[first - 1]]
    return float(later[0]) if len(later) else float(np.nextafter(ordered[-1], np.inf))


def expected_rates(trust: Float[np.ndarray, " n"], accepted: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """(FAR, FRR) expected by the trusts; 0 where no label can be wrong, or none right."""
    right, wrong = trust.sum(), (1 - trust).sum()
    far = (1 - trust[accepted]).sum() / wrong if wrong > 0 else 0.0
    return float(far), float(trust[~accepted].sum() / right if right > 0 else 0.0)


def operating_points(trust: Float[np.ndarray, " n"], chosen: float | str) -> list[OperatingPoint]:
    """The operating point of the chosen threshold, then those of COMPARED that differ from it."""
    others = [threshold for threshold in COMPARED if parse_threshold(threshold) != parse_threshold(chosen)]
    return [_operating_point(trust, threshold) for threshold in (chosen, *others)]


def _operating_point(trust: np.ndarray, threshold: float | str) -> OperatingPoint:
    least = threshold_for(trust, threshold)
    accepted = trust >= least
    far, frr = expected_rates(trust, accepted)
    return OperatingPoint(threshold=threshold, trust=least, refused=int((~accepted).sum()), far=far, frr=frr)


def expected_errors(trust: Float[np.ndarray, " n"], accepted: Bool[np.ndarray, " n"]) -> float:
    """Expected share of rows that are accepted though wrong or refused though right.

    No review and no better network can gain more than that.
    """
    return float(np.where(accepted, 1 - trust, trust).mean()) if len(trust) else 0.0


def reliability(trust: Float[np.ndarray, " m"], right: Bool[np.ndarray, " m"]) -> tuple[float, float]:
    """(Brier score, expected calibration error) of trusts in labels that are right or wrong.

    Brier score: mean squared difference of trust to 1 for right and 0 for wrong. Calibration error: mean gap between
    trust and share of right labels, over BINS equal bins of trust weighted by their rows; mostly chance with few rows.
    """
    bins = np.minimum((trust * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, trust - right, minlength=BINS))
    return float(((trust - right) ** 2).mean()), float(gaps.sum() / len(trust))


def zero_failure_bound(n: int) -> float:
    """Upper 95 % confidence bound of a rate of which n random rows showed no case, 1 - 0.05^(1 / n); 1 for no rows."""
    return 1 - (1 - CONFIDENCE) ** (1 / n) if n else 1.0


def stratified_noise_rate(
    reviewed: Num[np.ndarray, "classes classes"], rows: Int[np.ndarray, " classes"]
) -> tuple[float, tuple[float, float]] | None:
    """(share of wrong labels, its 95 % confidence interval) by rows drawn at random within every given label.

    reviewed: counts [true, given] of the draw; rows: of every given label in the data. None where nothing was drawn.
    The draw takes about equally many rows of each label, so each label is weighted by its rows in the data:

        p = sum over c of w_c x_c / n_c,   w_c ~ rows_c,   n_c drawn of label c, x_c of them wrong

    Labels of which nothing was drawn are left out. The interval is that of Korn and Graubard (1998): Clopper and
    Pearson's beta quantiles at the effective sample size n = 1 / sum(w_c^2 / n_c), which is the plain sample size where
    labels are as common in the draw as in the data. The draw ends when enough labels are right, not at a size fixed
    before. That is ignored: it would raise the lower bound by less than one more drawn row does.
    """
    drawn = reviewed.sum(0)
    seen = drawn > 0
    if not seen.any():
        return None
    weights = rows[seen] / rows[seen].sum()
    wrong = (drawn - np.diag(reviewed))[seen]
    share, n = float((weights * wrong / drawn[seen]).sum()), float(1 / (weights**2 / drawn[seen]).sum())
    x, tail = min(n, n * share), (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, x, n - x + 1)) if x > 0 else 0.0
    return share, (low, float(beta.ppf(1 - tail, x + 1, n - x)) if x < n else 1.0)
