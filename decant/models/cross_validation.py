"""Out-of-fold predictions: each row is predicted by the network that trained on the other folds.

Cost: `folds` trainings on (folds - 1) / folds of the rows.
"""

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from decant.data.images import Images
from decant.models.settings import TrainSettings
from decant.models.training import predict, steps_of, train_classifier
from decant.streams import child


def out_of_fold(
    images: Images, train: TrainSettings, *, folds: int, seed: int, on_step: Callable[[], None] = lambda: None
) -> Float[np.ndarray, "n classes"]:
    """Predict the probabilities of every row by the network that did not train on its fold, in float64.

    Folds are stratified by label; there are no more of them than the commonest class has rows.
    """
    from sklearn.model_selection import StratifiedKFold  # here: the import takes seconds

    splitter = StratifiedKFold(
        _possible_folds(folds, images.labels), shuffle=True, random_state=child(seed, "cross_validation", "folds")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is missing in some of them
        splits = list(splitter.split(images.labels, images.labels))
    probabilities = np.empty((len(images), images.classes))
    for number, (kept, left_out) in enumerate(splits):
        seed_of_fold = child(seed, "cross_validation", "classifier", number)
        model = train_classifier(images.select(kept), train, seed=seed_of_fold, on_step=on_step)
        probabilities[left_out] = softmax(predict(model, images.pixels[left_out]).astype(np.float64), axis=1)
    return probabilities


def out_of_fold_steps(labels: Int[np.ndarray, " n"], train: TrainSettings, folds: int) -> int:
    """Count the optimisation steps of one `out_of_fold`, for a progress bar's total."""
    folds = _possible_folds(folds, labels)
    left_out = [len(labels) // folds + (fold < len(labels) % folds) for fold in range(folds)]
    return sum(steps_of(len(labels) - rows, train) for rows in left_out)


def _possible_folds(folds: int, labels: np.ndarray) -> int:
    """At most as many folds as the commonest class has rows, and at least two."""
    return max(2, min(folds, int(np.bincount(labels).max())))
