"""Influence functions: how much each training row of a classifier supports a prediction.

In the order in which they build on each other:

    layer_gradients.py  a layer's inputs, output gradients and per-row weight gradients
    hooks.py            collects them for every layer in one forward and one backward pass
    ekfac.py            the curvature of a model from them
    functions.py        influence of training rows on queries, by that curvature
    factor_cache.py     keeps a model's curvature on disk
"""
