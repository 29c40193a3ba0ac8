"""Countermeasures against unlearnable examples: ours and its rivals. One file each, found by its name.

A countermeasure gets a training set that may carry unlearnable noise and yields a classifier that should do well on
clean data. Its file has a frozen dataclass ``Settings`` and at least one of

    clean(images, settings, *, seed) -> Images             one that changes the data before ordinary training
    train(images, train_settings, settings, *, seed, probe) -> nn.Module       one that changes the training itself

`clean` keeps ids, labels and shapes, and never changes its input. `probe` are labelled images known to be clean, or
None; of those here, only `iss` looks at them. Adding a countermeasure is adding such a file.

>>> model = train_with("jpeg", images, TrainSettings(network="resnet18"), seed=0, quality=10)
"""
