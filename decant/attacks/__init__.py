"""Poisonings, to measure against. One file each, found by its name: adding an attack is adding a file.

An attack's file has a frozen dataclass ``Settings``, its ``KIND`` and

    poison(images, settings, rng, spared) -> Poisoned

KIND says what is wrong with its rows: ``noise`` (pixels that teach nothing), ``label`` or ``backdoor``. Noise may lie
on top of the others; for those, `spared` (n,) bool marks rows that an earlier attack took, so that the truth stays
readable. An attack with a trigger also has

    trigger(images, settings, rng) -> Images

the rows of a clean set that its trigger turns, carrying the label that the attacker wants predicted. An attack that
must see the data before it can strike also has

    prepare(train, test, settings, rng) -> settings that say more

and is asked for it through `prepared`, once, before the other two: the trigger in the training rows and in the test
rows must be the same one, and an attack on one test image must know which.
Importing an attack loads no torch (the command line checks their settings); those that train a surrogate load it when
they run, through `decant.attacks._surrogate`.
"""
