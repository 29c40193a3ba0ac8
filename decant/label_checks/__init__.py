"""Label checks: methods that find rows with a wrong label, LabelTrust and its rivals, one file each.

A check gets an untrusted labelled set, and a few *references*: rows with a right label from an expert. It gives every
row a suspicion, and flags rows by its own rule, without the truth. A file with a frozen dataclass ``Settings`` and the
function

    judge(case, settings) -> CheckResult

is a check, called by the file's name. All checks get the same case. `case.known` are the rows with the references under
their right labels, for all that train on them. Checks that train a classifier train the same one, by `case.train`; what
several of them need of it is computed once per case. On the references the expert's answers overrule the check.

>>> from decant.label_checks.base import CheckCase, judge
>>> case = CheckCase(images=images, references=rows, answers=labels, train=TrainSettings(), seed=0)
>>> judge("confident_learning", case, folds=5).flagged
"""
