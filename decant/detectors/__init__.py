"""Detectors: from a few affected points to the training rows that cause them. One file each, found by its name.

An *affected point* is an image together with the wrong label that a user saw the model predict for it. Points that
share a predicted label are taken to have one cause and are judged together, as one `DetectionCase`. A detector's file
has

    judge(case, points) -> Detection

and adding a detector is adding such a file; `detect.py` runs it and `merge.py` merges its detections of several causes.
Scores have one direction: higher is more suspicious. Thresholds are fixed in advance or taken from the data without the
truth, and each detector may flag nothing, in which case the note of `Detection.nothing` says why.

Only the rows that carry the predicted label are candidates (`detect.same_label`): what made the model predict a class
carried that class's label. The other rows are then the background with which a detector compares, and the share of them
that passes its rule tells how many of its verdicts are wrong. With the switch off, every row is a candidate.
"""
