"""Verifying labels from a few references alone: LabelTrust's table for x = 2 to 20 references per class.

Networks learn from x rows of every MNIST class; each of the 10,000 test rows is then paired with all ten labels.
`MODE.xX.accuracy` over these 100,000 mappings (refusing all scores 90 %), `.frr`, `.far`, `.balanced`, `.auroc`;
`.top1`: how often the right label has the highest score; `.poisoned_score`, `.trr`: mean score and share refused of
triggered test rows under the attacker's label. MODE: `paper` (mean sigmoid, threshold 0.5), `plus` (an ensemble of
three, calibrated, threshold 0.5). `plus` at 0.5 refuses what is more likely wrong than right.
"""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks._labels import POISONINGS, case
from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.labeltrust.scorer import TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.runtime import be_deterministic
from decant.streams import stream

SIZES = (2, 5, 10, 15, 20)
SETTINGS = {"paper": VerifySettings(mode="paper", steps=1000), "plus": VerifySettings()}
THRESHOLD = 0.5
PAPER = {2: (92.52, 72.98, 100.00), 5: (95.30, 41.03, 99.75), 10: (96.29, 32.07, 99.93), 15: (97.46, 22.80, 99.87),
         20: (97.36, 22.94, 99.95)}  # fmt: skip
"""SL accuracy, FRR, TRR in percent."""


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    train, test, *_ = case("mnist", "clean", seed)
    triggered = load_attacks(POISONINGS["trigger"])[0].trigger(test, stream(seed, "benchmarks", "trigger"))
    assert triggered is not None
    order = stream(seed, "benchmarks", "references").permutation(len(train))
    figures: dict[str, float] = {}
    for size in SIZES:
        rows = [order[train.labels[order] == label][:size] for label in range(train.classes)]
        references = train.select(np.concatenate(rows))
        for mode, settings in SETTINGS.items():
            scorer = TrustScorer.fit(references, settings=settings, seed=seed)
            found = measured(scorer, test) | poisoned(scorer, triggered)
            figures |= {f"{mode}.x{size}.{key}": value for key, value in found.items()}
        print(f"  x = {size}", flush=True)
    return figures


def measured(scorer: TrustScorer, test: Images) -> dict[str, float]:
    score = scorer.score_matrix(test.pixels)
    right = np.eye(test.classes, dtype=bool)[test.labels]
    accepted = score >= THRESHOLD
    frr, far = float((~accepted[right]).mean()), float(accepted[~right].mean())
    return {
        "accuracy": float((accepted == right).mean()),
        "frr": frr,
        "far": far,
        "balanced": 1 - (frr + far) / 2,
        "auroc": float(roc_auc_score(right.ravel(), score.ravel())),
        "top1": float((score.argmax(1) == test.labels).mean()),
    }


def poisoned(scorer: TrustScorer, triggered: Images) -> dict[str, float]:
    score = scorer.score(triggered.pixels, triggered.labels, prior="uniform")
    return {"poisoned_score": float(score.mean()), "trr": float((score < THRESHOLD).mean())}


def table(result: dict[str, Any]) -> str:
    """Accuracy over all mappings, FRR and TRR in percent, beside the paper's."""
    lines = ["| x | paper | paper mode | plus |", "|--:|--:|--:|--:|"]
    for size, theirs in PAPER.items():
        ours = [
            " / ".join(f"{100 * result['mean'][f'{mode}.x{size}.{key}']:.2f}" for key in ("accuracy", "frr", "trr"))
            for mode in SETTINGS
        ]
        lines.append(f"| {size} | {' / '.join(f'{value:.2f}' for value in theirs)} | {ours[0]} | {ours[1]} |")
    return "Accuracy / FRR / TRR in percent:\n\n" + "\n".join(lines)
