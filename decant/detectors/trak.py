"""TRAK (Park et al., ICML 2023, arXiv 2303.14186): influence in a random projection of the gradients.

The model is replaced by its linearisation, and a row's gradient of the margin by a random projection φ_i of it, small
enough that the curvature of all layers together can be inverted.

    φ_i = Pᵀ ∇f(i),   f = log(p / (1 - p))        a_i = mean over affected points q of  φ_qᵀ (ΦᵀΦ)⁻¹ φ_i (1 - p_i)

Symbols:  p_i  probability of row i's label        P  the projection, Φ (n, k) the projected gradients of all n rows
          G (o, d)  gradient by a layer's weights, `decant.influence.layer_gradients`;  R_S (o, side), R_A (d, side)

Own small version. Changed: each layer's gradient is projected from both sides, R_Sᵀ G R_A (as LoGra does, arXiv
2405.13954), which never forms the full gradient; the inverse has a ridge; one checkpoint, the model as it is, where the
paper averages over several trainings. Threshold: as `ekfac_threshold`.

Cost: one forward and backward pass over the rows; 4 n DIMENSIONS bytes.
"""

from math import isqrt

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from decant.data.images import Images
from decant.detectors._background import above_background
from decant.detectors.base import Detection, DetectionCase
from decant.influence.functions import neg_margin
from decant.influence.hooks import Rows, layers_of, visit_rows
from decant.influence.layer_gradients import LayerBatch
from decant.models.training import labels_to_device, predict, to_device
from decant.streams import torch_stream

DIMENSIONS = 512  # of a row's projected gradient, all layers together; at most
RIDGE = 0.01  # of the mean diagonal of ΦᵀΦ


def judge(case: DetectionCase, points: Images) -> Detection:
    x, y = case.rows
    rows = projected(case, x, y)  # (n, k)
    queries = projected(case, to_device(points.pixels), labels_to_device(points.labels))  # (q, k)
    kernel = rows.T @ rows
    kernel.diagonal().add_(RIDGE * kernel.diagonal().mean())
    log_odds = torch.linalg.solve(kernel, queries.mean(0)) @ rows.T  # (n,)
    p = torch.from_numpy(predict(case.model, case.train.pixels)).softmax(1)[torch.arange(len(y)), y.cpu()]
    return above_background(case, points, (log_odds.cpu() * (1 - p)).numpy(), "TRAK score on the affected points")


def projected(case: DetectionCase, x: UInt8[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """φ of rows x with labels y, the layers' shares side by side; the projection follows from the seed."""
    side = max(1, isqrt(DIMENSIONS // len(layers_of(case.model))))
    generator = torch_stream(case.seed, "trak", "projection")
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    found: dict[str, Tensor] = {}

    def keep(name: str, rows: Rows, batch: LayerBatch) -> None:
        if name not in matrices:  # the layers are met in the same order on every pass
            matrices[name] = _random(batch.a, side, generator), _random(batch.g, side, generator)
        R_A, R_S = matrices[name]
        part = (batch.gradients(batch.g @ R_S) @ R_A).flatten(1)
        found.setdefault(name, part.new_zeros(len(x), part.shape[1]))[rows] = part

    visit_rows(case.model, x, neg_margin(y), keep, on_rows=case.on_rows if x is case.rows[0] else lambda rows: None)
    return torch.cat(list(found.values()), 1)


def _random(like: Float[Tensor, "... d"], side: int, generator: torch.Generator) -> Float[Tensor, "d side"]:
    """A Gaussian projection from the last dimension of `like`."""
    return torch.randn(like.shape[-1], side, generator=generator).to(like) / side**0.5
