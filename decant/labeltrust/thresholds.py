"""Thresholds that promise a rate, and what an expert's random looks can vouch for.

Where trust w is a probability (`decant.labeltrust.label_noise`), the rates of a threshold follow from the scores alone:

    FAR = sum over accepted rows of (1 - w) / sum over all rows of (1 - w)      wrong labels that pass (TRR = 1 - FAR)
    FRR = sum over refused rows of w / sum over all rows of w                   right labels that are refused

`far=0.001` is the lowest threshold whose expected FAR is at most 0.001, `frr=0.02` the highest whose expected FRR is at
most 0.02. Both hold as far as the noise model does; n rows drawn at random can refute a rate only down to about 3 / n.
Measured on 12,000 MNIST rows with 10 % wrong labels: `far=0.001` gave TRR 99.75 to 100 % (reference page of the
prototype); `python -m benchmarks label-cleaning` measures it on all 60,000.
"""

import numpy as np
from scipy.stats import beta

from decant.summaries import OperatingPoint

CONFIDENCE = 0.95
COMPARED = (0.5, "far=0.01", "far=0.001", "frr=0.01")  # thresholds whose price is told beside the chosen one's
BINS = 10  # of trust, as usual for the expected calibration error


def parse_threshold(threshold: float | str) -> tuple[str, float]:
    """("trust", value), ("far", rate) or ("frr", rate) of a setting that `decant.settings` has checked."""
    if not isinstance(threshold, str):
        return "trust", float(threshold)
    kind, _, rate = threshold.partition("=")
    return kind, float(rate)


def threshold_for(trust: np.ndarray, threshold: float | str) -> float:
    """The trust from which on a row is accepted. trust: (n,) probabilities; an empty array promises nothing.

    A number is returned as it is. Rows of equal trust share their fate, so a promise is kept on the safe side of ties.
    """
    kind, rate = parse_threshold(threshold)
    if kind == "trust" or not len(trust):
        return rate if kind == "trust" else 0.5
    ordered = np.sort(trust.astype(np.float64))
    if kind == "far":
        wrong = 1 - ordered
        passing = wrong[::-1].cumsum()[::-1]  # expected wrong rows among those from here on
        kept = np.flatnonzero(passing <= rate * wrong.sum() + 1e-12)
        first = int(kept[0]) if len(kept) else len(ordered)
        return _above(ordered, first)
    refused = np.concatenate([[0.0], ordered.cumsum()[:-1]])  # expected right rows below each
    return float(ordered[np.flatnonzero(refused <= rate * ordered.sum() + 1e-12)[-1]])


def _above(ordered: np.ndarray, first: int) -> float:
    """The smallest trust that accepts no row before `first` of the ascending values."""
    if first == 0:
        return float(ordered[0])
    later = ordered[ordered > ordered[first - 1]]
    return float(later[0]) if len(later) else float(np.nextafter(ordered[-1], np.inf))


def expected_rates(trust: np.ndarray, accepted: np.ndarray) -> tuple[float, float]:
    """(FAR, FRR) that trusts (n,) lead to expect of rows of which `accepted` (n,) bool are accepted, as at the top; 0
    where nothing could be judged wrongly."""
    right, wrong = trust.sum(), (1 - trust).sum()
    far = (1 - trust[accepted]).sum() / wrong if wrong > 0 else 0.0
    return float(far), float(trust[~accepted].sum() / right if right > 0 else 0.0)


def operating_points(trust: np.ndarray, chosen: float | str) -> list[OperatingPoint]:
    """Of the chosen threshold, then of those COMPARED that are others. trust: (n,) probabilities."""
    others = [threshold for threshold in COMPARED if parse_threshold(threshold) != parse_threshold(chosen)]
    found = []
    for threshold in (chosen, *others):
        bound = threshold_for(trust, threshold)
        accepted = trust >= bound
        far, frr = expected_rates(trust, accepted)
        refused = int((~accepted).sum())
        found.append(OperatingPoint(threshold=threshold, trust=bound, refused=refused, far=far, frr=frr))
    return found


def expected_errors(trust: np.ndarray, accepted: np.ndarray) -> float:
    """Share of the rows that the trusts (n,) lead to expect to be judged wrongly: accepted though wrong, or refused
    though right. No review, and no better network, can gain more than that."""
    return float(np.where(accepted, 1 - trust, trust).mean()) if len(trust) else 0.0


def reliability(trust: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """(Brier score, expected calibration error) of trusts (m,) in labels of which `right` (m,) bool are right.

    Brier: mean squared difference to 1 for right and 0 for wrong. Calibration error: mean gap between the trust and the
    share that is right, over BINS equal bins of trust weighted by their rows; with few rows it is mostly chance.
    """
    bins = np.minimum((trust * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, trust - right, minlength=BINS))
    return float(((trust - right) ** 2).mean()), float(gaps.sum() / len(trust))


def zero_failure_bound(n: int) -> float:
    """The smallest rate that n random rows without a single failure rule out, at 95 % confidence; 1 for none."""
    return 1 - (1 - CONFIDENCE) ** (1 / n) if n else 1.0


def stratified_noise_rate(reviewed: np.ndarray, rows: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """(share of wrong labels, its confidence interval) by rows drawn at random of every given label; None: of none.

    reviewed: (classes, classes) counts [true, given] of what was drawn; rows: (classes,) of every given label in the
    data. The draw takes equally many rows of each label, however common it is, so each label counts by its rows:

        p = sum over c of w_c x_c / n_c,   w_c ~ rows_c,   n_c drawn of label c, x_c of them wrong

    Labels of which nothing was drawn are left out. The interval is that of Korn and Graubard (1998): Clopper and
    Pearson's beta quantiles at the effective number of draws n = 1 / sum(w_c^2 / n_c), which is their plain number
    where labels are as common in the draw as in the data. That rows are drawn until enough are right, and not so many
    as was fixed before, is left aside: it would narrow the interval from below, by less than one row's worth.
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
