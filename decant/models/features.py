"""Features of a classifier's inner layers, and what is computed from them: neighbours, clusters, spectral signatures.

Features are the inputs of the last linear layer, or the outputs of a network's stages. Works on every network of
`decant.models.networks`, and on others whose last linear layer gives the logits.

Cost: one forward pass; the neighbours of 60,000 rows of 784 pixels take about a minute on one CPU core.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from decant.models.training import EVAL_BATCH, as_float, predict, to_device
from decant.runtime import device
from decant.streams import stream

STAGE_FLOATS = 1024
"""Largest number of values that a stage's output is pooled to, for one row."""
NEIGHBOUR_ROWS = 512
"""Rows whose distances to all others are in memory at once."""


def logits_and_features(
    model: nn.Module, pixels: UInt8[np.ndarray, "n h w c"]
) -> tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n d"]]:
    """Compute logits and features, the inputs of the last linear layer, in one pass."""
    parts: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0].float().cpu()))
    try:
        logits = predict(model, pixels)
    finally:
        handle.remove()
    return logits, torch.cat(parts).numpy()


@torch.no_grad()
def stage_outputs(model: nn.Module, pixels: UInt8[np.ndarray, "n h w c"]) -> list[Float32[np.ndarray, "n _"]]:
    """Compute the output of every stage of a network, from the first on.

    A stage ends with the last layer before the feature map gets smaller. Its output is averaged over at most 4 x 4
    tiles, over fewer where there are many channels.
    """
    model = model.to(device()).eval()
    x, stages = to_device(pixels), _stages(model, to_device(pixels[:1]))
    seen: dict[nn.Module, Tensor] = {}
    parts: dict[nn.Module, list[Tensor]] = {stage: [] for stage in stages}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[module] = output

    handles = [stage.register_forward_hook(keep) for stage in stages]
    try:
        for batch in x.split(EVAL_BATCH):
            model(as_float(batch))
            for stage in stages:
                parts[stage].append(_tiles(seen[stage]).cpu())
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts[stage]).numpy() for stage in stages]


def _stages(model: nn.Module, picture: Tensor) -> list[nn.Module]:
    """The last module called at each size of feature map above 1 x 1, from the first convolution on."""
    last: dict[tuple[int, ...], nn.Module] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        wide = isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] > picture.shape[1]
        if wide and max(output.shape[2:]) > 1:
            last[tuple(output.shape[2:])] = module

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        model(as_float(picture))
    finally:
        for handle in handles:
            handle.remove()
    return list(last.values())


def _tiles(output: Tensor) -> Tensor:
    channels, height, width = output.shape[1:]
    side = max(1, min(4, height, width, isqrt(STAGE_FLOATS // channels)))
    return F.adaptive_avg_pool2d(output.float(), side).flatten(1)


def nearest(
    queries: Float[np.ndarray, "n d"], among: Float[np.ndarray, "m d"], k: int, *, itself: bool = False
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Find the k nearest rows of `among` for each query: their Euclidean distances and row numbers, the nearest first.

    itself: queries and `among` are the same rows, and none counts as its own neighbour.
    """
    rows = torch.from_numpy(np.ascontiguousarray(among, np.float32)).to(device())
    squares, distances, indices = rows.square().sum(1), [], []
    for start in range(0, len(queries), NEIGHBOUR_ROWS):
        part = torch.from_numpy(np.ascontiguousarray(queries[start : start + NEIGHBOUR_ROWS], np.float32)).to(device())
        squared = part.square().sum(1)[:, None] + squares - 2 * part @ rows.T
        if itself:
            own = torch.arange(len(part), device=part.device)
            squared[own, own + start] = torch.inf
        found = squared.topk(min(k, len(rows) - itself), dim=1, largest=False)
        distances.append(found.values.clamp(min=0).sqrt().cpu())
        indices.append(found.indices.cpu())
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()


def two_clusters(
    features: Float[np.ndarray, "n d"], dimensions: int, *, seed: int
) -> Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, "m 2"]]:
    """Divide rows into two clusters by k-means on their first principal components.

    Returns: a function from features to the distances from the centre of the larger cluster and of the smaller.
    """
    from sklearn.cluster import KMeans  # here: the import takes seconds
    from sklearn.decomposition import PCA

    draws = np.random.RandomState(stream(seed, "two_clusters").bit_generator)
    pca = PCA(min(dimensions, *features.shape), random_state=draws).fit(features)
    clusters = KMeans(2, n_init=10, random_state=draws).fit(pca.transform(features))
    small = int(np.bincount(clusters.labels_, minlength=2).argmin())
    return lambda rows: clusters.transform(pca.transform(rows))[:, [1 - small, small]]


def spectral_signature(
    features: Float[np.ndarray, "n d"],
) -> Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, " m"]]:
    """Find the first right singular vector v of the centred rows (Tran et al., NeurIPS 2018).

    Returns: a function from features x to (v'(x - mean))², the spectral signature.
    """
    mean = features.mean(0, dtype=np.float64)
    centred = features.astype(np.float64) - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    return lambda rows: ((rows - mean) @ vectors[:, -1]) ** 2
