"""Confidence scorers: methods that score how far a classifier's prediction can be trusted, LabelTrust and its rivals.

A scorer gets a classifier, the rows that it was trained on (with labels that may be wrong), a few references with right
labels from an expert, and test pictures with the classes that the classifier predicts for them. A file with a frozen
dataclass ``Settings`` and the function

    fit_and_score(case, settings) -> np.ndarray      (m,) in [0, 1], higher = more trustworthy

is a scorer, called by the file's name. Only ``labeltrust`` looks neither inside the classifier nor at its training
rows.

>>> from decant.confidence.base import ConfidenceCase, fit_and_score
>>> fit_and_score("trust_score", ConfidenceCase(classifier=model, train=rows, ..., seed=0), k=10)
"""
