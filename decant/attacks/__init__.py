"""Simulated attacks, to measure against. One file each, found by its name: adding an attack is adding a file.

An attack's file has a frozen dataclass ``Settings``, its ``KIND`` and

    poison(images, settings, rng, taken) -> Poisoned

KIND says what is wrong with the rows:

* ``unlearnable``: perturbed pixels, so that a network trained on them fails on clean data (an availability attack);
* ``label``: wrong labels;
* ``backdoor``: rows that make a network predict the attacker's class for triggered or chosen test images.

An unlearnable perturbation may lie on rows of any other attack. The others never share a row, so that the truth stays
readable: `taken` (n,) bool marks the rows of earlier ones. An attack with a trigger also has

    trigger(images, settings, rng) -> Images

the rows of a clean set that it is aimed at, with the trigger, labelled with the class that the attacker wants
predicted. An attack that must see the data first also has

    prepare(train, test, settings, rng) -> settings that say more

which is called once, before the other two (`Attack.prepared`): training rows and test rows must carry the same trigger,
and an attack on one test image must know which.

Every random draw comes from `rng`. Importing an attack loads no torch (the command line checks their settings); those
that train a surrogate network load it when they run, through `decant.attacks._surrogate`.
"""
