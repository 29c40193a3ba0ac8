"""The queue of rows that wait for the expert's answer, with what helps to answer.

That is the class that a row looks like, the trust in its label, and the references most like it.
"""

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from decant.data.images import Images
from decant.labeltrust.judgement import Judgement
from decant.labeltrust.review_rounds import Reviews
from decant.labeltrust.scorer import TrustScorer

LOOKALIKES = 4  # references of a class shown beside a row


def queue_of(reviews: Reviews, judgement: Judgement | None) -> pd.DataFrame:
    """The rows that wait for an answer, as in `Reviews.table`, with further columns.

    `rows`: how many their round asked about in all; where a judgement is given, `suggested`, `trust`, `like_given` and
    `like_suggested` (ids of references).
    """
    queue = reviews.table(reviews.waiting)
    queue["rows"] = queue["round"].map(reviews.sizes).astype("Int64")
    return queue if judgement is None else _explained(queue, reviews.images, judgement)


def _explained(queue: pd.DataFrame, images: Images, judgement: Judgement) -> pd.DataFrame:
    """Columns stay blank in rows whose label is not judged."""
    labels, names = images.labels, np.array(images.info.class_names, object)
    rows = pd.Series(np.arange(len(labels)), index=images.ids).loc[queue["id"]].to_numpy()
    suggested, judged = judgement.suggestion(labels)[rows], np.isin(labels[rows], judgement.judged)
    trust = np.where(judged, judgement.trust(labels)[rows].round(4), np.nan)
    queue = queue.assign(suggested=np.where(judged, names[suggested], ""), trust=trust)
    if judgement.scorer is None:
        return queue
    return queue.assign(
        like_given=_lookalikes(images.pixels[rows], labels[rows], judgement.scorer),
        like_suggested=_lookalikes(images.pixels[rows], np.where(judged, suggested, -1), judgement.scorer),
    )


def _lookalikes(pixels: UInt8[np.ndarray, "r h w c"], labels: Int[np.ndarray, " r"], scorer: TrustScorer) -> list[str]:
    """For every picture the ids of the LOOKALIKES references of its label that it resembles most, between blanks."""
    found = np.full(len(pixels), "", object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        nearest = scorer.references.ids[scorer.nearest(pixels[rows], int(label), LOOKALIKES)]
        found[rows] = [" ".join(map(str, ids)) for ids in nearest]
    return found.tolist()
