"""Scores of right and wrong predictions of a model on MNIST, by LabelTrust and its rivals.

A `small_cnn` learns from rows of which 2 % carry BadNet's patch (8 called 5). It predicts the 10,000 test rows as they
are (`benign`) and the 8s among them with the patch (`triggered`). The judges of its predictions: LabelTrust from ten
confirmed references per class and nothing else, as `plus`, as `batch` (`plus` with its prior estimated from the
predictions) and as `paper`; `max_softmax`, the model's own largest probability; and those rivals that look into the
model and at its training rows, `trust_score`, `confidnet` and `steep_slope`. The paper's table has the scores of
mispredictions.

* `accuracy`, `poison_success`: of the model
* `<judge>.benign_wrong.mean`, `.median`; `<judge>.triggered_wrong.mean`, `.median`: score of the wrong predictions of a
  set: low is good
* `<judge>.right.mean`, `.median`: score of the right predictions of the benign set: high is good
* `<judge>.auroc.benign`, `.both`: chance that a right prediction of the benign set scores above a wrong one of the
  benign set, or of either set
* `<judge>.ece.benign`: mean distance of the score from the share of right predictions, in 15 bins of equal width
* `unknown`: mean largest trust of `plus` in any digit for 2,000 pictures of clothing (Fashion-MNIST)

`small`: the model learns from 12,000 rows; `full`: from 60,000.
"""

from typing import Any

import numpy as np

from benchmarks._rows import ingested, planted
from decant.attacks import badnet
from decant.confidence.base import ConfidenceCase, fit_and_score
from decant.data.images import Images
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.models.settings import TrainSettings
from decant.models.training import predict, train_classifier
from decant.runtime import be_deterministic
from decant.streams import stream

ROWS = {"small": 12_000, "full": None}
REFERENCES = 10
UNKNOWN = 2_000
JUDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "plus": ("labeltrust", {}),
    "batch": ("labeltrust", {"prior": "batch"}),
    "paper": ("labeltrust", {"mode": "paper", "steps": 500}),
    "max_softmax": ("max_softmax", {}),
    "trust_score": ("trust_score", {}),
    "confidnet": ("confidnet", {}),
    "steep_slope": ("steep_slope", {}),
}
SETS = ("benign_wrong", "triggered_wrong", "right")


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    train, test = ingested(scale, "mnist", ROWS[scale])
    attack = badnet.Settings()
    poisoned = planted(train, [{"name": "badnet"}], seed)
    model = train_classifier(poisoned, TrainSettings(epochs=5), seed=seed)
    triggered = badnet.trigger(test, attack, stream(seed, "benchmarks", "trigger"))
    pixels = np.concatenate([test.pixels, triggered.pixels])
    truth = np.concatenate([test.labels, np.full(len(triggered), attack.victim)])
    labels, benign = predict(model, pixels).argmax(1), np.arange(len(truth)) < len(test)
    references = confirmed(poisoned, train.labels, seed)
    case = ConfidenceCase(
        classifier=model,
        train=poisoned,
        references=references,
        answers=train.labels[references],
        pixels=pixels,
        predicted=labels,
        seed=seed,
    )
    figures = {
        "accuracy": float((labels == truth)[benign].mean()),
        "poison_success": float((labels == attack.target)[~benign].mean()),
        "unknown": trust_out_of_distribution(scale, case),
    }
    for judge, (name, settings) in JUDGES.items():
        found = figures_of(fit_and_score(name, case, **settings), labels == truth, benign)
        figures |= {f"{judge}.{key}": value for key, value in found.items()}
    return figures


def confirmed(images: Images, truth: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers of ten random rows of each class whose label is right."""
    rng = stream(seed, "benchmarks", "references")
    right = images.labels == truth
    rows = [rng.permutation(np.flatnonzero(right & (truth == label)))[:REFERENCES] for label in range(images.classes)]
    return np.concatenate(rows)


def trust_out_of_distribution(scale: str, case: ConfidenceCase) -> float:
    clothing = ingested(scale, "fashion_mnist", UNKNOWN)[0].pixels
    scorer = TrustScorer.fit(case.trusted, settings=VerifySettings(steps=200), seed=case.seed)
    return float(scorer.suggestion(clothing)[1].mean())


def figures_of(trust: np.ndarray, right: np.ndarray, benign: np.ndarray) -> dict[str, float]:
    """Of one judge. All (n,): its scores, whether the prediction is right, whether the row is of the benign set."""
    from sklearn.metrics import roc_auc_score

    groups = dict(zip(SETS, (~right & benign, ~right & ~benign, right & benign), strict=True))
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
    gaps = np.bincount(which, trust, bins) - np.bincount(which, right, bins)
    return float(np.abs(gaps).sum() / len(trust))


def table(result: dict[str, Any]) -> str:
    """Mispredictions as the paper shows them, a judge per line; means over the seeds."""
    mean = result["mean"]
    lines = [
        "| score of | wrong, benign: mean | median | wrong, triggered: mean | median | right: mean | AUROC benign "
        "| AUROC with triggered | ECE |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    keys = ("benign_wrong.mean", "benign_wrong.median", "triggered_wrong.mean", "triggered_wrong.median", "right.mean")
    for judge in JUDGES:
        cells = [f"{mean[f'{judge}.{key}']:.3f}" for key in (*keys, "auroc.benign", "auroc.both", "ece.benign")]
        lines.append(f"| {judge} | {' | '.join(cells)} |")
    return "\n".join(lines)
