"""Orion (Huang et al., "Orion: Online Backdoor Sample Detection via Evolution Deviance", IJCAI 2023).

What a picture looks like early in a network and what the network says of it in the end agree, unless a backdoor turns
it on the way. Side networks read the class from the stages of the frozen network; they learn from clean rows only.

    deviance(x, l) = mean over the side networks s of || s(x) - e_l ||_1 / 2 = 1 - mean_s s(x)_l

Reconstructed from the abstract and the usage notes of its code, as the paper's details are not at hand. Orion judges
predictions at inference, by the distance of the side networks from the final output; for rows of a training set the
given label takes that output's place, as it is what the network was taught to say. Changed: the side networks are
logistic regressions on tiled averages of each stage, as all they may learn from is the references (the paper has 10 %
of the data, clean). Flagged is what deviates more than `quantile` of the references do, each judged by side networks
that did not learn from it. The class that the side networks read is the suggestion, as in the paper's label recovery.

Cost: the plain classifier, and seconds.
"""

from dataclasses import dataclass

import numpy as np
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
    """Share of right labels that may pass, by the references."""


def judge(case: CheckCase, settings: Settings) -> CheckResult:
    require_references(case, "orion")
    stages = stage_outputs(case.model, case.images.pixels)
    rows, answers, classes = case.references, case.answers, case.images.classes
    read = side_outputs([stage[rows] for stage in stages], answers, stages, classes)
    fold_of = np.zeros(len(rows), int)
    folds = StratifiedKFold(max(2, min(FOLDS, int(np.bincount(answers)[np.unique(answers)].min()))))
    for number, (_, left_out) in enumerate(folds.split(answers, answers)):
        fold_of[left_out] = number
    normal = np.empty(len(rows))
    for number in np.unique(fold_of):
        kept, left_out = fold_of != number, fold_of == number
        unseen = [stage[rows[left_out]] for stage in stages]
        found = side_outputs([stage[rows[kept]] for stage in stages], answers[kept], unseen, classes)
        normal[left_out] = 1 - found[np.arange(left_out.sum()), answers[left_out]]
    deviance = 1 - read[np.arange(len(read)), case.images.labels]
    limit = float(np.quantile(normal, settings.quantile))
    flagged = deviance > limit
    return CheckResult(
        suspicion=deviance,
        flagged=flagged,
        suggested=read.argmax(1),
        note=f"{flagged.sum()} rows deviate by more than {limit:.2f}, as {1 - settings.quantile:.0%} of references do",
    )


def side_outputs(known: list[np.ndarray], labels: np.ndarray, stages: list[np.ndarray], classes: int) -> np.ndarray:
    """(n, classes) mean probabilities of one side network per stage, fitted to the known rows."""
    total = np.zeros((len(stages[0]), classes))
    for fitted_to, asked in zip(known, stages, strict=True):
        side = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(fitted_to, labels)
        total[:, side.classes_] += side.predict_proba(asked)
    return total / len(stages)
