"""Predictions of a classifier about rows that it did not train on: each fold is judged by the network of the others.

Cost: `folds` trainings on (folds - 1) / folds of the rows.
"""

import warnings

import numpy as np

from decant.images import Images
from decant.noise import softmax
from decant.settings import TrainSettings
from decant.training import predict, train_classifier


def out_of_fold(images: Images, train: TrainSettings, *, folds: int, seed: int) -> np.ndarray:
    """(n, classes) float64 probabilities of every row by the network that did not train on its fold."""
    from sklearn.model_selection import StratifiedKFold

    folds = max(2, min(folds, int(np.bincount(images.labels).max())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is missing in some of them
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(images.labels, images.labels))
    probabilities = np.empty((len(images), images.classes))
    for number, (kept, left_out) in enumerate(splits):
        model = train_classifier(images.select(kept), train, seed=seed + number)
        probabilities[left_out] = softmax(predict(model, images.pixels[left_out]).astype(np.float64))
    return probabilities
