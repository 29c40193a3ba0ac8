"""Merging the detections of several causes: which score, which rows, which note."""

from dataclasses import replace

import numpy as np

from decant.detectors.base import Detection
from decant.detectors.merge import merged


def detection(scores: list[float], flagged: list[bool], note: str, false_alarms: float | None) -> Detection:
    return Detection(
        scores=np.array(scores, np.float32),
        flagged=np.array(flagged),
        note=note,
        measure="influence",
        false_alarms=false_alarms,
    )


CATS = detection([0.9, 0.1, -0.2], [True, False, False], "1 row for cat", 0.25)
DOGS = detection([-0.5, 0.3, 0.1], [True, True, False], "2 rows for dog", 0.5)
BIRDS = Detection.nothing(np.array([0.0, 0.0, 0.4]), "no group for bird", "influence")


def test_a_row_has_its_highest_score_and_is_flagged_for_any_cause() -> None:
    found = merged({"cat": CATS, "dog": DOGS, "bird": BIRDS})
    assert np.array_equal(found.scores, np.array([0.9, 0.3, 0.4], np.float32))
    assert np.array_equal(found.flagged, [True, True, False])
    assert found.measure == "influence"


def test_false_alarms_add_up_where_all_are_known() -> None:
    assert merged({"cat": CATS, "dog": DOGS, "bird": BIRDS}).false_alarms == 0.75
    assert merged({"cat": CATS, "dog": replace(DOGS, false_alarms=None)}).false_alarms is None


def test_the_note_tells_what_was_found_and_names_the_classes_without() -> None:
    found = merged({"bird": BIRDS, "cat": CATS, "fish": BIRDS, "dog": DOGS})
    assert found.note == "1 row for cat; 2 rows for dog; nothing found for the points predicted bird, fish"
    assert merged({"bird": BIRDS, "fish": BIRDS}).note == "nothing found for the points predicted bird, fish"
    assert merged({"bird": BIRDS}) is BIRDS  # which says why
