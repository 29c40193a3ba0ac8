"""Figures of an evaluation: accuracy and poison success of a model, precision and recall of a stage's verdicts.

All rates are fractions in [0, 1].
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import nn

from decant.attacks.base import kind_of
from decant.data.images import Images
from decant.models.training import accuracy


def model_metrics(model: nn.Module, *, test: Images, triggered: Images, rows: int) -> dict[str, Any]:
    """Clean test accuracy, poison success rate (absent without triggered rows), and the rows it was trained on.

    The triggered rows carry the label that the attacker wants predicted, so poison success is the accuracy on them.
    """
    figures = {"accuracy": accuracy(model, test), "poison_success": accuracy(model, triggered), "rows": rows}
    return {key: rounded(value) for key, value in figures.items() if value is not None}


def rows_to_flag(truth: pd.DataFrame, given: "pd.Series[int]") -> dict[str, Int[np.ndarray, " m"]]:
    """Check (`decant.steps.CHECKS`) to the ids that it ought to flag: perturbed pixels, wrong labels, backdoor rows.

    truth: a Truth table; given: id to label as received. A dirty-label backdoor row has both a wrong label and a
    trigger, a label-consistent one only the trigger.
    """
    kinds = truth["attack"].map({name: kind_of(name) for name in truth["attack"].unique()})
    mislabelled = truth["original_label"].to_numpy() != given.loc[truth["id"]].to_numpy()
    return {
        "purify": truth.loc[kinds == "unlearnable", "id"].unique(),
        "verify": truth.loc[mislabelled, "id"].unique(),
        "detect": truth.loc[kinds == "backdoor", "id"].unique(),
    }


def verdict_metrics(verdicts: pd.DataFrame, wanted: Int[np.ndarray, " m"]) -> dict[str, Any]:
    """Precision and recall of the flagged rows against the ids that ought to be flagged; absent where undefined.

    Only rows that the stage saw count: what an earlier stage dropped is neither a hit nor a miss.
    """
    wanted = np.intersect1d(wanted, verdicts["id"].to_numpy())
    flagged = verdicts.loc[verdicts["flagged"], "id"].to_numpy()
    hits = np.isin(flagged, wanted).sum()
    figures: dict[str, Any] = {"flagged": len(flagged)}
    if len(flagged):
        figures["precision"] = rounded(hits / len(flagged))
    if len(wanted):
        figures["recall"] = rounded(hits / len(wanted))
    return figures


def rounded(value: float) -> float:
    """A fraction to six digits, so that the same run writes the same text; whole numbers as they are."""
    return round(float(value), 6) if isinstance(value, float) else value


def histogram(verdicts: pd.DataFrame, bins: int) -> pd.DataFrame:
    """Counts of kept and flagged scores in equal bins over the stage's range: stage, low, high, kept, flagged."""
    scores, flagged = verdicts["score"].to_numpy(float), verdicts["flagged"].to_numpy(bool)
    edges = np.histogram_bin_edges(scores, bins)
    return pd.DataFrame(
        {
            "stage": verdicts["stage"].iloc[0],
            "low": edges[:-1],
            "high": edges[1:],
            "kept": np.histogram(scores[~flagged], edges)[0],
            "flagged": np.histogram(scores[flagged], edges)[0],
        }
    ).round(6)
