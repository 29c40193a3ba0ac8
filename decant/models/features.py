"""What a classifier makes of pictures on the way to its logits, and which rows are alike by it.

For methods that look inside a network: the input of its last linear layer, the outputs of its stages, and among such
vectors (or pixels) exact nearest neighbours, two clusters, and the first direction of their spread. Works on every
network of `decant.models.networks`, and on others whose last linear layer gives the logits.

Cost: one forward pass; the neighbours of 60,000 rows of 784 pixels take about a minute on one CPU core.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.models.training import EVAL_BATCH, as_float, predict, to_device
from decant.runtime import device

STAGE_FLOATS = 1024  # of one row that a stage's output is pooled to, at most
NEIGHBOUR_ROWS = 512  # whose distances are in memory at once


def logits_and_features(model: nn.Module, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n, classes) logits, (n, d) inputs of the last linear layer), float32. pixels: (n, h, w, c) uint8."""
    parts: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0].float().cpu()))
    try:
        logits = predict(model, pixels)
    finally:
        handle.remove()
    return logits, torch.cat(parts).numpy()


@torch.no_grad()
def stage_outputs(model: nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """(n, d_i) float32 of every stage, the shallow first: what the last layer before each halving of the picture gives.

    Averaged over at most 4 x 4 tiles, fewer where there are many channels.
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
    """The last module called at each size of picture, from the first convolution on; 1 x 1 is no picture any more."""
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


def nearest(queries: np.ndarray, among: np.ndarray, k: int, *, itself: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """((n, k) Euclidean distances, (n, k) row numbers of `among`), the nearest first.

    itself: the two are the same rows, and none is to be its own neighbour.
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


def two_clusters(features: np.ndarray, dimensions: int, *, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Divides rows (n, d) by k-means on their first principal components.

    Returns: from features (m, d) to (m, 2) distances from the centre of the larger cluster and of the smaller.
    """
    from sklearn.cluster import KMeans  # here: it takes seconds
    from sklearn.decomposition import PCA

    pca = PCA(min(dimensions, *features.shape), random_state=seed).fit(features)
    clusters = KMeans(2, n_init=10, random_state=seed).fit(pca.transform(features))
    small = int(np.bincount(clusters.labels_, minlength=2).argmin())
    return lambda rows: clusters.transform(pca.transform(rows))[:, [1 - small, small]]


def spectral_signature(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Of rows (n, d): the first right singular vector of the centred rows.

    Returns: from features (m, d) to (m,) squared projections on it, from the rows' mean.
    """
    mean = features.mean(0, dtype=np.float64)
    centred = features.astype(np.float64) - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    return lambda rows: ((rows - mean) @ vectors[:, -1]) ** 2
