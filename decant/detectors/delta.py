"""Δ-Influence (arXiv 2411.13731): rows whose influence collapses when the affected point is transformed. `paper` mode.

A poisoned row supports the wrong prediction through the trigger; transform the image and ask for another label, and
that support is gone, while rows that matter to everything keep theirs. For an affected point z = (x, ŷ) and n copies
g_j(z) = (T_j(x), y_j), each with one random transformation and one random label y_j ≠ ŷ:

    Δ_ji = s(i, g_j(z)) - s(i, z)        flag row i  iff  #{j: Δ_ji < τ} ≥ n - n_tol

Symbols:  s(i, z) influence of training row i on point z, `decant.influence.functions`; positive: i supports z's label
          p affected points, n copies of each (`detect.copies`), n_tol of them may disagree (`detect.tolerance`)
          τ threshold (`detect.tau`), a_i score of row i

As the official code has it: the seven transformations below act on the image normalised by the training set's mean and
deviation; labels are uniform, with repetition; s is the influence on the negative margin; τ = 0. The paper's run is
``detector: delta, copies: 50, tolerance: 2, tau: 0, damping: 0, same_label: false`` with one affected point; its
ablations are ``varied: labels`` (the image stays) and ``varied: images`` (the label stays).

The score is the vote made continuous, by the order statistic that decides it:

    a_i = -Δ_(n - n_tol),i     the (n - n_tol)-th smallest Δ of the row; a_i > -τ if and only if row i is flagged

What we changed: all n + 1 queries of all points take one pass over the training rows, where the official code takes n
+ 1; gray images have no channels to swap, so six transformations remain; widths in pixels are those of a 32 x 32
image and shrink with smaller ones; with several affected points a row must be flagged by the vote of each of them, and
its score is the smallest over the points. Scores are divided by the spread of those of rows with other labels.

Cost: as one pass of `renormalised`, plus 4 (n + 1) bytes per point and weight for the queries. Expected: recall 1,
precision far below that of `renormalised` (0.15 in the authors' own BadNet run); docs/methods/influence.md has our
figures.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from decant.data.images import Images
from decant.detectors._background import middle_and_spread
from decant.detectors.base import Detection, DetectionCase
from decant.models.training import as_float, to_device
from decant.streams import stream

OFFICIAL_SIDE = 32  # pixels: the images for which the official widths were chosen
MEASURE = "influence that is lost in the transformed copies, in spreads of the rows with other labels"


def judge(case: DetectionCase, points: Images) -> Detection:
    settings, label = case.settings, int(points.labels[0])
    needed = settings.copies - min(settings.tolerance, settings.copies - 1)
    queries = queries_of(points, case.train, settings.copies, varied=settings.varied, seed=case.seed)
    pairwise = case.influence_on(queries, self_influence=False).pairwise
    lost = order_statistic(pairwise.view(len(points), settings.copies + 1, -1), needed).min(0).values.cpu().numpy()
    passing, others = lost > -settings.tau, case.train.labels != label
    spread = middle_and_spread(lost[others])[1] if others.any() else 1.0
    said = f"lose their influence on {case.count_of(points)} in at least {needed} of {settings.copies} copies"
    return case.flagging(passing, points, scores=lost / spread, said=said, measure=MEASURE)


def order_statistic(s: Float[Tensor, "p copies+1 rows"], needed: int) -> Float[Tensor, "p rows"]:
    """-Δ_(needed): above -τ if and only if at least `needed` of a row's Δ are below τ.

    s: influence on each point itself, then on its copies.
    """
    return -(s[:, 1:] - s[:, :1]).kthvalue(needed, dim=1).values


def queries_of(
    points: Images, train: Images, copies: int, *, seed: int, varied: str = "both"
) -> tuple[Float[Tensor, "q c h w"], Int[Tensor, " q"]]:
    """The q = p (n + 1) queries: each point, followed by its copies, which vary in image, label or both.

    Returns: inputs in the units of [0, 1], which copies may leave, and labels.
    """
    rng = stream(seed, "delta", "copies")
    x = as_float(to_device(points.pixels)).cpu()
    mean = train.pixels.mean((0, 1, 2)) / 255
    deviation = train.pixels.std((0, 1, 2)) / 255 + 1e-12
    mean, deviation = (torch.from_numpy(v).float()[:, None, None] for v in (mean, deviation))
    inputs, labels = [], []
    for image, label in zip(x, points.labels.tolist(), strict=True):
        changed = transformed((image - mean) / deviation, copies, rng) * deviation + mean
        others = (label + rng.integers(1, train.classes, copies)) % train.classes
        inputs += [image[None], changed if varied != "labels" else image.expand_as(changed)]
        labels += [label, *(others if varied != "images" else np.full(copies, label))]
    return torch.cat(inputs), torch.tensor(labels)


def transformed(image: Float[Tensor, "c h w"], copies: int, rng: np.random.Generator) -> Float[Tensor, "copies c h w"]:
    """Copies of a normalised image, each after one of the official transformations."""
    from torchvision import transforms as T  # here: it takes seconds, and no other detector needs it

    scale = min(1.0, min(image.shape[1:]) / OFFICIAL_SIDE)
    kernel = [2 * max(1, round(scale * half)) + 1 for half in (2, 4)]  # 5 x 9
    bank = [
        T.RandomHorizontalFlip(p=1),
        T.ColorJitter(brightness=(0.9, 1.1), contrast=(0.9, 1.1), saturation=(0.6, 1.4), hue=(-0.1, 0.1)),
        T.RandomAffine(degrees=(-180, 180), scale=(1, 2), shear=10),
        # torchvision divides alpha by the side, and noise blurred over sigma pixels is 1 / sigma as large.
        T.ElasticTransform(alpha=150.0 * scale**2, sigma=5.0 * scale),
        T.GaussianBlur(kernel, sigma=(8 * scale, 10 * scale)),
        T.RandomInvert(p=1),
    ]
    if len(image) == 3:
        bank.append(T.Lambda(lambda colored: colored[[1, 0, 2]]))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global state only
        torch.manual_seed(int(rng.integers(2**62)))
        return torch.stack([bank[rng.integers(len(bank))](image) for _ in range(copies)])
