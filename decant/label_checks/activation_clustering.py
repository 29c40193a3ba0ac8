"""Activation clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering",
SafeAI 2019): rows with the same label but for different reasons fall into two clusters of activations.

The features of each class, reduced to `dimensions`, are divided into two clusters by k-means. The smaller one counts as
poisoned if it is markedly smaller; a clean class falls into two halves of about the same size.

    suspicion(x, l) = d_large / (d_large + d_small),  distances from the centres of class l's larger and smaller cluster

Own code on scikit-learn: ART's ActivationDefence asks its wrapper for "layers", which only sees the children of a plain
nn.Sequential, and it gives no score that ranks rows. Changed: reduction by PCA, as in ART, not by ICA, which does not
converge for a small class; the score is ours, the paper has none. Meant for backdoors.

Cost: the plain classifier; seconds for 60,000 rows.
"""

from dataclasses import dataclass

import numpy as np

from decant.label_checks.base import NO_SUGGESTION, CheckCase, CheckResult
from decant.models.features import two_clusters
from decant.settings import Block, Fraction, Positive

MIN_ROWS = 10  # of a class, to be divided


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    dimensions: Positive = 10
    smaller: Fraction = 0.35
    """A cluster counts as poisoned if it has at most this share of its class (ART's default)."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag the smaller cluster of each class where it is small enough."""
    labels = case.known.labels
    suspicion, flagged = np.zeros(len(labels)), np.zeros(len(labels), bool)
    names = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < MIN_ROWS:
            continue
        distances = two_clusters(case.features[rows], settings.dimensions, seed=case.seed)
        to_large, to_small = distances(case.features[rows]).T
        is_small = to_small < to_large
        suspicion[rows] = to_large / np.maximum(to_large + to_small, 1e-12)
        if is_small.mean() <= settings.smaller:
            flagged[rows] = is_small
            names.append(case.images.info.class_names[label])
    return CheckResult(
        suspicion=suspicion,
        flagged=flagged,
        suggested=np.full(len(labels), NO_SUGGESTION),
        note=f"two clusters of unequal size in class {', '.join(names)}" if names else "no class falls into two",
    )
