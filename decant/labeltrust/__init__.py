"""LabelTrust: label verification by a Siamese network that learns from a few rows which an expert confirmed.

From the labels to the verdicts: `verify` (the method), `schedule` and `review_rounds` (which rows the expert is shown,
in which round), `experts` and `decisions` (who answers, and the file of answers), `self_training` and `siamese` (what
is trained on what), `label_noise` and `judgement` (from scores to trust), `thresholds` (from trust to a decision),
`verdicts`, `open_questions`, `note` and `summary` (what comes out). `scorer`: what was learnt, to judge other pictures.
"""
