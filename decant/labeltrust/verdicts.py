"""What becomes of each row's label: the network's judgement, overruled by the expert where they saw the row.

| the expert | verdict |
|---|---|
| saw the given label | kept, trust 1 |
| saw another class | dropped or relabelled to it, trust 0 |
| could not tell | dropped, trust 0.5 |
| was not asked | kept from the threshold on; below it dropped, or relabelled where the suggestion is sure enough |
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from decant.labeltrust.decisions import UNCLEAR
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import threshold_for

if TYPE_CHECKING:
    from decant.labeltrust.self_training import Judgement


def verdicts(
    reviews: Reviews, judgement: "Judgement | None", settings: VerifySettings
) -> tuple[pd.DataFrame, float | None]:
    """(the network's verdicts, overruled by the expert's about the rows they saw; the trust that it asks for)."""
    images = reviews.images
    labels, names, n = images.labels, np.array(images.info.class_names, object), len(images)
    trust, suggested, certainty = np.ones(n), np.full(n, -1), np.zeros(n)
    reasons, threshold = np.full(n, "not judged: too few references so far", object), None
    if judgement is not None:
        is_judged = np.isin(labels, judgement.judged)
        trust = np.where(is_judged, judgement.trust(labels), 1.0)
        suggested = judgement.suggestion(labels)
        certainty = judgement.belief[np.arange(n), suggested]
        threshold = threshold_for(trust[is_judged & ~reviews.reviewed], settings.threshold)
        reasons = _reasons(names[labels], names[suggested], trust, certainty, trust < threshold)
        reasons[~is_judged] = [f"not judged: fewer than 2 references of {name}" for name in names[labels[~is_judged]]]
    refuted = (reviews.answers >= 0) & ~reviews.confirmed
    unclear = reviews.answers == UNCLEAR
    trust = np.select([reviews.confirmed, refuted, unclear], [1.0, 0.0, 0.5], trust)
    suggested = np.where(refuted, reviews.answers, suggested)
    certainty = np.where(refuted, 1.0, certainty)
    flagged = np.where(reviews.reviewed, refuted | unclear, trust < (threshold or 0))
    reasons[reviews.confirmed] = "the expert confirmed the label"
    reasons[refuted] = "the expert saw a " + names[reviews.answers[refuted]] + ", not a " + names[labels[refuted]]
    reasons[unclear] = "the expert could not tell what it shows"
    relabel = flagged & ~unclear & (certainty >= settings.relabel_above) & (settings.action == "relabel")
    none = ~flagged | unclear
    frame = pd.DataFrame(
        {
            "id": images.ids,
            "stage": "verify",
            "score": (1 - trust).astype(np.float32),
            "flagged": flagged,
            "action": np.select([relabel, flagged], ["relabel", "drop"], "keep"),
            "suggested_label": pd.Series(suggested, dtype="Int32").mask(none),
            "suggested_trust": np.where(none, np.nan, certainty).astype(np.float32),
            "reason": reasons,
        }
    )
    return frame, threshold


def _reasons(
    given: np.ndarray, suggested: np.ndarray, trust: np.ndarray, certainty: np.ndarray, refused: np.ndarray
) -> np.ndarray:
    """One sentence per row; names as (n,) objects, the trust in either."""
    rows = zip(given, suggested, trust, certainty, refused, strict=True)
    return np.array(
        [
            f"looks like a {other} (trust {sure:.2f}), not a {name} (trust {value:.2f})"
            if is_refused
            else f"trust of the given {name}: {value:.2f}"
            for name, other, value, sure, is_refused in rows
        ],
        object,
    )
