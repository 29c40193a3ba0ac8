"""Speed of label verification: scored mappings per second, and a whole cleaning beside cross-validated cleanlab.

`mappings_per_second`: MNIST's 10,000 test rows, each paired with all ten labels, by one saved scorer's network with ten
references per class, pictures in, trust out; best of three. `mappings_per_second_35`: with 35 references per class.
`decant_seconds`: LabelTrust cleans MNIST's 60,000 rows from ten references per class, two self-training passes, no
review loops. `cleanlab_seconds`: confident learning on the same rows with `small_cnn`, five folds, ten epochs each
(accuracy on held-out folds no longer rises). `cleanlab_ratio`: how many times as long cleanlab takes, in this run.
`decant.auroc`, `cleanlab.auroc`: how well each ranks the 9.4 % wrong labels.
"""

import time

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks._labels import TRAIN, case
from decant.data.images import Images
from decant.label_checks.base import CheckCase, judge
from decant.labeltrust.experts import Oracle
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Pool, train
from decant.labeltrust.verify import verify
from decant.models.training import labels_to_device, to_device
from decant.runtime import be_deterministic
from decant.streams import stream

REPEATS = 3


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    received, test, right, wrong = case("mnist", "random", seed)
    figures = {
        "mappings_per_second": mappings_per_second(received.with_labels(right), test, 10, seed),
        "mappings_per_second_35": mappings_per_second(received.with_labels(right), test, 35, seed),
    }
    truth = pd.DataFrame({"id": received.ids, "attack": "planted", "original_label": right})
    started = time.perf_counter()
    outcome = verify(received, Oracle(received, truth), VerifySettings(passes=2, rounds=0), seed=seed)
    figures["decant_seconds"] = time.perf_counter() - started
    seen = np.flatnonzero(np.isin(received.ids, outcome.reviews["id"]))
    started = time.perf_counter()
    known = CheckCase(images=received, references=seen, answers=right[seen], train=TRAIN, seed=seed)
    check = judge("confident_learning", known)
    figures["cleanlab_seconds"] = time.perf_counter() - started
    unseen = np.delete(np.arange(len(received)), seen)
    return figures | {
        "cleanlab_ratio": figures["cleanlab_seconds"] / figures["decant_seconds"],
        "decant.auroc": float(roc_auc_score(wrong[unseen], outcome.verdicts["score"].to_numpy()[unseen])),
        "cleanlab.auroc": float(roc_auc_score(wrong[unseen], check.suspicion[unseen])),
    }


def mappings_per_second(clean: Images, test: Images, per_class: int, seed: int) -> float:
    order = stream(seed, "benchmarks", "references").permutation(len(clean))
    rows = np.concatenate([order[clean.labels[order] == label][:per_class] for label in range(clean.classes)])
    references = clean.select(rows)
    x = to_device(references.pixels)
    pool = Pool.of(x, labels_to_device(references.labels), clean.classes)
    network = train([(pool, 8)], clean.shape, mode="plus", steps=20, seed=seed)
    drawn = stream(seed, "benchmarks", "logits").normal(size=(100, clean.classes))  # any will do: speed alone counts
    scorer = TrustScorer.calibrated([network], references, temperature=1.0, ordinary=drawn.astype(np.float32))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        scorer.score_matrix(test.pixels)
        seconds.append(time.perf_counter() - started)
    return len(test) * clean.classes / min(seconds)
