"""Label checks: ways to find the rows whose label is wrong, ours and its rivals. One file each, found by its name.

A check gets a labelled set that it need not trust, and a few *references*: rows whose right label an expert told. It
says of every row how suspicious its label is, and which rows it would take out, by its own rule and without the truth.
Its file has a frozen dataclass ``Settings`` and

    judge(case, settings) -> CheckResult

All checks know the same: `case.known` are the rows with the references' labels put right, for all that train on them.
Those that train a classifier train the same one, by `case.train`; what several need of it is computed once per case.
The references themselves are judged by the expert's word, whatever a check makes of them. Adding a check is adding such
a file.

>>> case = CheckCase(images=images, references=rows, answers=labels, train=TrainSettings(), seed=0)
>>> judge("confident_learning", case, folds=5).flagged
"""
