"""Orion (Huang et al., "Orion: Online Backdoor Sample Detection via Evolution Deviance", IJCAI 2023).

The early stages of a network and its output agree about a clean picture; a backdoor turns the prediction in the later
stages. Side networks predict the class from each stage of the frozen network; they learn from clean rows only.

    suspicion(x, l) = deviance = mean over the side networks s of || s(x) - e_l ||_1 / 2 = 1 - mean_s s(x)_l

Reconstructed from the abstract and the usage notes of its code; the paper's details were not at hand. Orion judges
predictions at inference, by the distance of the side networks from the final output; for the rows of a training set the
given label, which the network was trained to predict, takes that output's place. Changed: the side networks are
logistic regressions on tiled averages of each stage, as they learn from the references alone (the paper has 10 % of the
data, clean). A row is flagged if it deviates more than the share `quantile` of the references, whose own deviance is
cross-validated. The side networks' prediction is the suggestion, as in the paper's label recovery.

Cost: the plain classifier, and seconds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decant.label_checks.base import CheckCase, CheckResult, require_references
from decant.models.features import stage_outputs
from decant.settings import Block, Fraction

FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    quantile: Fraction = 0.95
    """Share of the references with a smaller deviance than any flagged row."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    """Flag rows that deviate more than most references."""
    require_references(case, "orion")
    stages = stage_outputs(case.model, case.images.pixels)
    rows, answers, classes = case.references, case.answers, case.images.classes
    of_references = [stage[rows] for stage in stages]
    predicted = side_outputs(of_references, answers, stages, classes)
    deviance = 1 - predicted[np.arange(len(predicted)), case.images.labels]
    limit = float(np.quantile(cross_validated_deviance(of_references, answers, classes), settings.quantile))
    flagged = deviance > limit
    return CheckResult(
        suspicion=deviance,
        flagged=flagged,
        suggested=predicted.argmax(1),
        note=f"{flagged.sum()} rows deviate by more than {limit:.2f}, as {1 - settings.quantile:.0%} of references do",
    )


def cross_validated_deviance(
    stages: list[Float[np.ndarray, "m d"]], labels: Int[np.ndarray, " m"], classes: int
) -> Float[np.ndarray, " m"]:
    """Deviance of each row with its right label, by side networks that did not learn from it."""
    deviance = np.empty(len(labels))
    rarest = int(np.bincount(labels)[np.unique(labels)].min())
    for kept, left_out in StratifiedKFold(max(2, min(FOLDS, rarest))).split(labels, labels):
        unseen = [stage[left_out] for stage in stages]
        predicted = side_outputs([stage[kept] for stage in stages], labels[kept], unseen, classes)
        deviance[left_out] = 1 - predicted[np.arange(len(left_out)), labels[left_out]]
    return deviance


def side_outputs(
    known: list[Float[np.ndarray, "m d"]],
    labels: Int[np.ndarray, " m"],
    stages: list[Float[np.ndarray, "n d"]],
    classes: int,
) -> Float[np.ndarray, "n classes"]:
    """Mean probabilities of one side network per stage, each fitted to the known rows at that stage."""
    total = np.zeros((len(stages[0]), classes))
    for fitted_to, asked in zip(known, stages, strict=True):
        side = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(fitted_to, labels)
        total[:, side.classes_] += side.predict_proba(asked)
    return total / len(stages)
