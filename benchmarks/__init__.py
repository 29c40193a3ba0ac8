"""Measurements: one way to measure, one file per benchmark, found by its name.

A benchmark is ``benchmarks/<name>.py`` with ``run(scale, seed) -> dict[str, float]``, called once per seed; its
module's docstring says what is measured and against what. Files that begin with an underscore are helpers.
"""
