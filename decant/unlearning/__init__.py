"""Unlearning: from a trained model to one as if some rows had never been there. One file each, found by its name.

A method's file has a frozen dataclass ``Settings`` and

    unlearn(task, settings) -> nn.Module

and adding a method is adding such a file. It returns a new network in eval mode on the device; the model and the rows
that it was given stay as they are. `decant.unlearning.auto` tries several methods, measures their results without the
truth, and takes the first that passes.

>>> task = UnlearningTask(model=model, kept=kept, flagged=flagged, train=TrainSettings(), seed=0)
>>> done = unlearn_with("finetune", task)
"""
