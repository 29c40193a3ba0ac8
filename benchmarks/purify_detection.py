"""Detection of the rows that carry noise (D-VAE's Table 8), and whether p^ is the perturbation (its Table 1).

`ATTACK.RATIO.WHICH.auroc`, `.precision`, `.recall`, `.f1` for partly poisoned rows. WHICH: `ours`, ridge regression on
the residual x - x3 (decant.purify.gate), flagged from its own threshold on; `paper`, a network trained on x + p^ that
flags a row when it predicts the given label for it as received (auroc: by that label's probability); `votes`, the same
by the mean probability over three such networks.
`ATTACK.disentangled.test|received`: accuracy on clean test rows and on the poisoned rows of a network trained on clean
rows plus the p^ that was found for them: low on the first and high on the second where p^ is the perturbation.
`ATTACK.amplified.RATIO`: test accuracy when p^, found with that share of poisoned rows, is added to every clean row
("increasing unlearnable examples").
"""

from statistics import mean
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from benchmarks._rows import ATTACKS, TRAIN, ingested, partly, planted
from decant.data.images import Images
from decant.models.training import accuracy, train_classifier
from decant.purify.dvae import recipe
from decant.purify.gate import RowScorer, amplified, pattern_scores, row_threshold
from decant.purify.settings import PurifySettings
from decant.purify.two_stage import LIMITS, Inference, PurifyStage, fit
from decant.runtime import be_deterministic
from decant.streams import child

SHOWN = {"small": ("lsp", "ar", "pil"), "full": ("lsp", "em")}
RATIOS = (0.2, 0.4, 0.6, 0.8)


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    train, test = ingested(scale)
    figures: dict[str, float] = {}
    for attack in SHOWN[scale]:
        noisy = planted(train, [{"name": attack, **ATTACKS[scale][attack]}], seed)
        for ratio in (*RATIOS, 1.0):
            received, rows = partly(train, noisy, ratio, seed)
            p_hat, x3 = both_stages(received, seed)
            if ratio < 1:
                for which, scores, flagged in judged(received, x3, p_hat, seed):
                    figures |= {f"{attack}.{ratio}.{which}.{k}": v for k, v in quality(rows, scores, flagged).items()}
            if ratio in (RATIOS[0], 1.0):
                spoilt = train_classifier(amplified(train, p_hat), TRAIN[scale], seed=seed)
                name = "disentangled.test" if ratio == 1.0 else f"amplified.{ratio}"
                figures[f"{attack}.{name}"] = accuracy(spoilt, test) or 0.0
                figures |= {f"{attack}.disentangled.received": accuracy(spoilt, noisy) or 0.0} if ratio == 1.0 else {}
            print(f"  {attack} {ratio}", flush=True)
    keys = [f"{which}.{key}" for which in ("ours", "paper", "votes") for key in ("auroc", "precision", "recall", "f1")]
    return figures | {
        f"mean.{key}": mean(figures[f"{attack}.{ratio}.{key}"] for attack in SHOWN[scale] for ratio in RATIOS)
        for key in keys
    }


def both_stages(received: Images, seed: int) -> tuple[np.ndarray, Images]:
    """(p^ of stage 1 (n, h, w, c), x3)."""
    chosen, one, two = recipe(PurifySettings(), received), child(seed, "purify_1"), child(seed, "purify_2")
    x1, p_hat = Inference(fit(received, PurifyStage(chosen, LIMITS[0]), seed=one), one).first_stage(received)
    return p_hat, Inference(fit(x1, PurifyStage(chosen, LIMITS[1]), seed=two), two).second_stage(x1)[0]


def judged(received: Images, x3: Images, p_hat: np.ndarray, seed: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, scores, flagged) of three ways to find the rows that carry noise."""
    ours = RowScorer.fit(received, x3, seed=seed)(received, x3)
    one, hit = pattern_scores(received, p_hat, networks=1, seed=seed)
    votes, _ = pattern_scores(received, p_hat, networks=3, seed=seed)
    return [("ours", ours, ours >= row_threshold(ours)), ("paper", one, hit), ("votes", votes, votes >= 0.5)]


def quality(rows: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(rows, flagged, average="binary", zero_division=0)
    return {
        "auroc": float(roc_auc_score(rows, scores)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def table(result: dict[str, Any]) -> str:
    """Attacks and ratios by the three ways to find the rows, AUROC and F1."""
    ways = [(which, key) for which in ("ours", "paper", "votes") for key in ("auroc", "f1")]
    lines = ["| attack | ratio | " + " | ".join(f"{which} {key}" for which, key in ways) + " |"]
    lines.append("|---|--:|" + "--:|" * len(ways))
    for attack in SHOWN[result["scale"]]:
        for ratio in RATIOS:
            values = [result["mean"][f"{attack}.{ratio}.{which}.{key}"] for which, key in ways]
            lines.append(f"| {attack} | {ratio} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)
