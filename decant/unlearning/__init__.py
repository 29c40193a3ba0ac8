"""Unlearning: from a trained model to one as if some rows had never been there. One file each, found by its name.

A method's file has a frozen dataclass ``Settings`` and

    unlearn(task, settings) -> nn.Module

and adding a method is adding such a file. It gives back a network of its own in eval mode on the device; the model and
the rows that it was given stay as they are. `decant.unlearning._auto` measures the results without the truth and takes
the first that passes.

>>> done = unlearn_with("finetune", Task(model=model, kept=kept, flagged=flagged, train=TrainSettings(), seed=0))
"""
