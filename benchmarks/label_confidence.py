"""Confidence in a model's predictions: what LabelTrust's scorer says of right and of wrong ones, on MNIST.

A `small_cnn` learns from rows of which 2 % carry BadNet's patch (8 called 5). It predicts the 10,000 test rows as they
are (`benign`) and the 8s among them with the patch (`triggered`). Who judges the predictions: `plus` and `paper`,
scorers of ten references per class from the clean training rows and nothing else; `batch`, the scorer `plus` with its
prior estimated from the predictions; `softmax`, the model's own largest probability. The paper's table has the scores
of mispredictions.

* `accuracy`, `poison_success`: of the model
* `<judge>.<set>_wrong.mean`, `.median`: score of the wrong predictions of a set (`benign`, `triggered`): low is good
* `<judge>.right.mean`, `.median`: score of the right predictions of the benign set: high is good
* `<judge>.auroc.benign`, `.both`: chance that a right prediction of the benign set scores above a wrong one of the
  benign set, or of either set
* `<judge>.ece.benign`: mean distance of the score from the share of right predictions, in 15 bins of equal width
* `unknown`: mean largest trust of `plus` in any digit for 2,000 pictures of clothing (Fashion-MNIST)

`small`: the model learns from 12,000 rows; `full`: from 60,000.
"""

import numpy as np

from benchmarks._rows import ingested, planted
from decant import noise
from decant.attacks import badnet
from decant.images import Images
from decant.scorer import TrustScorer
from decant.settings import TrainSettings, VerifySettings
from decant.training import predict, train_classifier

ROWS = {"small": 12_000, "full": None}
REFERENCES = 10
STRANGERS = 2_000


def run(scale: str, seed: int) -> dict[str, float]:
    train, test = ingested(scale, "mnist", ROWS[scale])
    attack = badnet.Settings()
    model = train_classifier(planted(train, [{"name": "badnet"}], seed), TrainSettings(epochs=5), seed=seed)
    triggered = badnet.trigger(test, attack, np.random.default_rng(seed))
    truth = np.concatenate([test.labels, np.full(len(triggered), attack.victim)])
    logits = np.concatenate([predict(model, rows.pixels) for rows in (test, triggered)])
    labels, is_benign = logits.argmax(1), np.arange(len(truth)) < len(test)
    scores, unknown = judged(train, np.concatenate([test.pixels, triggered.pixels]), labels, strangers(scale), seed)
    scores["softmax"] = noise.softmax(logits).max(1)
    figures = {
        "accuracy": float((labels == truth)[is_benign].mean()),
        "poison_success": float((labels == attack.target)[~is_benign].mean()),
        "unknown": unknown,
    }
    for judge, trust in scores.items():
        found = figures_of(trust, labels == truth, is_benign)
        figures |= {f"{judge}.{key}": value for key, value in found.items()}
    return figures


def strangers(scale: str) -> np.ndarray:
    """Pixels of clothing."""
    return ingested(scale, "fashion_mnist", STRANGERS)[0].pixels


def judged(
    train: Images, pixels: np.ndarray, labels: np.ndarray, strange: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], float]:
    """(trust in the predictions by judge, mean largest trust of `plus` for the strange pictures)"""
    rng = np.random.default_rng([seed, 7])
    rows = [rng.permutation(np.flatnonzero(train.labels == label))[:REFERENCES] for label in range(train.classes)]
    references = train.select(np.concatenate(rows))
    settings = (VerifySettings(steps=200), VerifySettings(mode="paper", steps=500))
    plus, paper = (TrustScorer.fit(references, settings=each, seed=seed) for each in settings)
    evidence = plus.class_scores(pixels)
    trust = {
        "plus": plus.judge(evidence, labels, prior="uniform").trust,
        "batch": plus.judge(evidence, labels, prior="batch").trust,
        "paper": paper.score(pixels, labels),
    }
    return trust, float(plus.suggestion(strange)[1].mean())


def figures_of(trust: np.ndarray, right: np.ndarray, benign: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    groups = {"right": right & benign, "benign_wrong": ~right & benign, "triggered_wrong": ~right & ~benign}
    figures: dict[str, float] = {}
    for name, rows in groups.items():
        figures |= {f"{name}.mean": float(trust[rows].mean()), f"{name}.median": float(np.median(trust[rows]))}
    counted = benign | ~right
    figures["auroc.benign"] = float(roc_auc_score(right[benign], trust[benign]))
    figures["auroc.both"] = float(roc_auc_score(right[counted], trust[counted]))
    return figures | {"ece.benign": expected_calibration_error(trust[benign], right[benign])}


def expected_calibration_error(trust: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Mean over the rows of |mean trust - share right| of the row's bin."""
    which = np.minimum((trust * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    gaps = np.bincount(which, trust, bins) - np.bincount(which, right, bins)
    return float(np.abs(gaps).sum() / counts.sum())
