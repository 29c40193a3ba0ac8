"""Merging the detections of several causes into one.

Affected points that share a predicted label are taken to have one cause, and every cause is judged by itself. A
training row may be suspected for several of them. Merged,

    score         is the row's highest over the causes
    flagged       is a row that was flagged for any cause
    false_alarms  is the sum over the causes, and unknown where it is unknown for one of them
    note          repeats those of the causes for which rows were flagged, and names the classes of the others
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from decant.detectors.base import Detection


def merged(found: Mapping[str, Detection]) -> Detection:
    """One detection from those of one detector for several causes, by the class that was predicted; at least one."""
    parts = list(found.values())
    if len(parts) == 1:
        return parts[0]
    notes = [part.note for part in parts if part.flagged.any()]
    without = [name for name, part in found.items() if not part.flagged.any()]
    if without:
        notes.append(f"nothing found for the points predicted {', '.join(without)}")
    alarms = [part.false_alarms for part in parts if part.false_alarms is not None]
    return replace(
        parts[0],
        scores=np.max([part.scores for part in parts], axis=0),
        flagged=np.any([part.flagged for part in parts], axis=0),
        note="; ".join(notes),
        false_alarms=sum(alarms) if len(alarms) == len(parts) else None,
    )
