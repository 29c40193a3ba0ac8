"""Predictions of a classifier about rows that it did not train on: each fold is judged by the network of the others.

Cost: `folds` trainings on (folds - 1) / folds of the rows.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import predict, steps_of, train_classifier


def out_of_fold(
    images: Images, train: TrainSettings, *, folds: int, seed: int, on_step: Callable[[], None] = lambda: None
) -> np.ndarray:
    """(n, classes) float64 probabilities of every row by the network that did not train on its fold."""
    from sklearn.model_selection import StratifiedKFold

    folds = _possible(folds, images.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is missing in some of them
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(images.labels, images.labels))
    probabilities = np.empty((len(images), images.classes))
    for number, (kept, left_out) in enumerate(splits):
        model = train_classifier(images.select(kept), train, seed=seed + number, on_step=on_step)
        probabilities[left_out] = softmax(predict(model, images.pixels[left_out]).astype(np.float64), axis=1)
    return probabilities


def out_of_fold_steps(labels: np.ndarray, train: TrainSettings, folds: int) -> int:
    """Optimiser steps of one `out_of_fold` (for a progress bar's total)."""
    folds = _possible(folds, labels)
    left_out = [len(labels) // folds + (fold < len(labels) % folds) for fold in range(folds)]
    return sum(steps_of(len(labels) - rows, train) for rows in left_out)


def _possible(folds: int, labels: np.ndarray) -> int:
    """As many folds as the commonest class has rows, at most; at least two."""
    return max(2, min(folds, int(np.bincount(labels).max())))
