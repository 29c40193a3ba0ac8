"""What cleaning was worth: accuracy, poison success rate, and how verdicts compare with the planted truth.

All figures are fractions in 0-1.
"""

from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from decant.data.images import Images
from decant.models.training import accuracy


def model_metrics(model: nn.Module, *, test: Images, triggered: Images, rows: int) -> dict[str, Any]:
    """Clean test accuracy, poison success rate (absent without triggered rows), and the rows it was trained on.

    The triggered rows carry the label that the attacker wants predicted, so poison success is the accuracy on them.
    """
    figures = {"accuracy": accuracy(model, test), "poison_success": accuracy(model, triggered), "rows": rows}
    return {key: rounded(value) for key, value in figures.items() if value is not None}


def verdict_metrics(verdicts: pd.DataFrame, guilty: np.ndarray) -> dict[str, Any]:
    """Precision and recall of the flagged rows against the ids in `guilty`; each absent where it is undefined.

    A stage answers only for the rows that it saw: what an earlier stage dropped counts neither for it nor against it.
    """
    guilty = np.intersect1d(guilty, verdicts["id"].to_numpy())
    flagged = verdicts.loc[verdicts["flagged"], "id"].to_numpy()
    hits = np.isin(flagged, guilty).sum()
    figures: dict[str, Any] = {"flagged": len(flagged)}
    if len(flagged):
        figures["precision"] = rounded(hits / len(flagged))
    if len(guilty):
        figures["recall"] = rounded(hits / len(guilty))
    return figures


def rounded(value: float) -> float:
    """Six digits: enough for any test set here, and the same text on every run."""
    return round(float(value), 6) if isinstance(value, float) else value


def histogram(verdicts: pd.DataFrame, bins: int) -> pd.DataFrame:
    """stage, low, high, kept, flagged: counts of scores in equal bins over the stage's own range."""
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
