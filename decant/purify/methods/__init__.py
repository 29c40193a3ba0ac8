"""Purification methods against unlearnable examples: D-VAE and its rivals. One file each, found by its name.

A method gets a training set that may carry unlearnable perturbations, and yields a classifier that should do
well on clean data. Its file has a frozen dataclass ``Settings`` and at least one of

    clean(images, settings, *, seed) -> Images                             purifies the images before ordinary training
    train(images, train_settings, settings, *, seed, probe) -> nn.Module   changes the training itself

`clean` keeps ids, labels and shapes, and never changes its input. `probe` are labelled images known to be clean, or
None; `iss` alone looks at them. The pipeline can run a method that has `clean` (`purify.method`). Adding
one is adding such a file.

>>> from decant.purify.methods.base import train_with
>>> model = train_with("jpeg", images, TrainSettings(network="resnet18"), seed=0, quality=10)
"""
