"""Confidence scorers: how far can a classifier's prediction be trusted? Ours and its rivals, one file each.

A scorer gets a classifier, the rows that it was trained on (with labels that need not all be right), a few references
whose right label an expert told, and test pictures with the classes that the classifier predicts for them. Its file,
found by its name, has a frozen dataclass ``Settings`` and

    fit_and_score(case, settings) -> np.ndarray      (m,) in [0, 1], higher = more trustworthy

Only ``labeltrust`` never looks inside the classifier, nor at its training rows. Adding a scorer is adding such a file.

>>> fit_and_score("trust_score", ConfidenceCase(classifier=model, train=rows, ..., seed=0), k=10)
"""
