"""Predictions of a classifier about rows that it did not train on: each fold is judged by the network of the others.

Cost: `folds` trainings on (folds - 1) / folds of the rows.
"""

import numpy as np

from decant.images import Images
from decant.noise import softmax
from decant.settings import TrainSettings
from decant.training import predict, train_classifier


def out_of_fold(images: Images, train: TrainSettings, *, folds: int, seed: int) -> np.ndarray:
    """(n, classes) float64 probabilities of every row by the network that did not train on its fold."""
    from sklearn.model_selection import StratifiedKFold

    smallest = np.bincount(images.labels)[np.unique(images.labels)].min()
    probabilities = np.empty((len(images), images.classes))
    for number, (kept, left_out) in enumerate(
        StratifiedKFold(max(2, min(folds, int(smallest))), shuffle=True, random_state=seed).split(
            images.labels, images.labels
        )
    ):
        model = train_classifier(images.select(kept), train, seed=seed + number)
        probabilities[left_out] = softmax(predict(model, images.pixels[left_out]).astype(np.float64))
    return probabilities
