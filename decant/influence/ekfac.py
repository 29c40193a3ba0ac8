"""EK-FAC: the curvature of a classifier as one eigenbasis and one table of eigenvalues per layer.

George et al. 2018 (arXiv 1806.03884); for influence functions Grosse et al. 2023 (arXiv 2308.03296). The Fisher matrix
of a network is far too large to invert. Inside one layer, however, the gradients of the weights nearly share the
eigenvectors of a Kronecker product of two small matrices; only those eigenvectors are kept, and in their basis the
exact second moments of the gradients.

    G_i = Σ_t g_it a_itᵀ            gradient of row i's loss by the layer's weights [W | b]
    A = Σ_it a aᵀ = Q_A E_A Q_Aᵀ    S = Σ_it g gᵀ = Q_S E_S Q_Sᵀ
    Ĝ_i = Q_Sᵀ G_i Q_A              Λ = mean_i Ĝ_i²  (elementwise)
    H = (Q_S ⊗ Q_A) diag(Λ + λ) (Q_S ⊗ Q_A)ᵀ          H⁻¹ V = Q_S [ (Q_Sᵀ V Q_A) / (Λ + λ) ] Q_Aᵀ

Symbols:  a (b, t, d) inputs and g (b, t, o) output gradients of a layer: `decant.influence.layer_gradients`
          G, Ĝ (b, o, d) gradients by the weights, and the same in the eigenbasis
          A, Q_A (d, d) and S, Q_S (o, o)   second moments of a and g, and their eigenvectors
          Λ (o, d) eigenvalues, H the curvature of one layer, λ = damping · mean(Λ)
          c  dimension of blocks before (o, d), each with bases of its own, for a layer that has several

What is ours: G_i is formed inside the backward pass (`hooks.visit_rows`); each side of Ĝ is rotated where that is
cheaper, before the sum over t or after it; A of a convolution of stride 1 is computed without its patches
(`input_moment`), and on a CPU G_i of any convolution; what the first pass computed is recorded for the second, as far
as memory allows (`hooks.Recording`); memory is bounded by one budget, and the size of batches changes no result. Linear
and Conv2d count, grouped ones too; the scale and shift of normalisation layers are held fixed, as in kronfluence,
unless `normalisation` is set: then each channel is a block. Any other layer with parameters is an error, not a silent
omission.

Cost: two forward and backward passes over the rows, one of which is spared for rows that were recorded, and two
eigendecompositions per layer. Measured against kronfluence: `python -m benchmarks influence-speed`; agrees with its
version 1.0.1 (tests/test_influence.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import StageError
from decant.influence.hooks import Losses, Recording, Rows, budget_of, layers_of, visit_rows
from decant.influence.layer_gradients import LayerBatch, input_moment, second_moment
from decant.streams import torch_stream

OFFICIAL_DAMPING = 1e-8  # λ where damping is 0: kronfluence's default, which the code of Δ-Influence uses

Bases = dict[str, tuple[Float[Tensor, "*c d d"], Float[Tensor, "*c o o"]]]
"""Layer name to (Q_A, Q_S)."""


@dataclass(frozen=True)
class Factors:
    """One layer's curvature: eigenvectors of both sides, and eigenvalues."""

    Q_A: Float[Tensor, "*c d d"]
    Q_S: Float[Tensor, "*c o o"]
    Lambda: Float[Tensor, "*c o d"]

    def inverse(self, damping: float, *, absolute: bool = False) -> Float[Tensor, "*c o d"]:
        """1 / (Λ + λ) with λ = damping · mean(Λ), or λ = damping where it is absolute.

        Where that is 0 (also for a layer that no row has a gradient in), λ is the official absolute one.
        """
        scale = 1.0 if absolute else float(self.Lambda.mean())
        return 1 / (self.Lambda + (damping * scale or OFFICIAL_DAMPING))


# ---------------------------------------------------------------------------------------------------------------------
# Mathematics of one layer
# ---------------------------------------------------------------------------------------------------------------------


def rotated(batch: LayerBatch, factors: Factors) -> Float[Tensor, "b *c o d"]:
    """Ĝ_i = Q_Sᵀ G_i Q_A, each side rotated in the cheaper order.

    The inputs' side costs t d² operations per row before the sum over positions and o d² after it; the outputs' side
    t o² before and d o² after.
    """
    t, o, d = batch.g.shape[-2], factors.Q_S.shape[-1], factors.Q_A.shape[-1]
    g = (factors.Q_S.mT @ batch.g.mT).mT if t < d else batch.g  # as laid out for a convolution
    G = g.mT @ (batch.a @ factors.Q_A) if t < o else batch.gradients(g) @ factors.Q_A
    return G if t < d else factors.Q_S.mT @ G


def rotated_back(V: Float[Tensor, "b *c o d"], factors: Factors) -> Float[Tensor, "b *c o d"]:
    """Q_S V Q_Aᵀ: from the eigenbasis to the parameters."""
    return factors.Q_S @ V @ factors.Q_A.mT


def eigenvectors(M: Float[Tensor, "*c n n"], layer: str) -> Float[Tensor, "*c n n"]:
    """Q of a symmetric M = Q E Qᵀ, in float64: float32 loses the small directions, which the inverse magnifies.

    Raises: StageError, which names the layer, where M is not finite.
    """
    if not M.isfinite().all():
        raise StageError(f"layer {layer!r}: its inputs or gradients overflow; train the model with a lower rate")
    return torch.linalg.eigh(M.double()).eigenvectors


# ---------------------------------------------------------------------------------------------------------------------
# The losses whose gradients make the Fisher matrix
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(y: Int[Tensor, " n"]) -> Losses:
    """The training loss of rows with labels y. As the losses of `fit`, it gives the empirical Fisher."""
    return lambda logits, rows: F.cross_entropy(logits, y[rows].to(logits.device), reduction="none")


def sampled_cross_entropy(n: int, *, seed: int) -> Losses:
    """Cross-entropy of n rows with labels drawn from the model's own softmax: as the losses of `fit`, the true Fisher.

    One uniform number per row is drawn ahead, so that neither the batch size nor a second pass changes a label.
    """
    uniform = torch.rand(n, 1, generator=torch_stream(seed, "labels of the true Fisher"), dtype=torch.float64)

    def losses(logits: Float[Tensor, "b classes"], rows: Rows) -> Float[Tensor, " b"]:
        # On the CPU: cumsum has no deterministic CUDA kernel.
        below = logits.detach().softmax(1).cpu().cumsum(1) < uniform[rows]
        labels = below.sum(1).clamp(max=logits.shape[1] - 1).to(logits.device)
        return F.cross_entropy(logits, labels, reduction="none")

    return losses


# ---------------------------------------------------------------------------------------------------------------------
# The factors
# ---------------------------------------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    x: Tensor,
    losses: Losses,
    *,
    basis_rows: int | None = None,
    eigenvalue_rows: int | None = None,
    bases: Bases | None = None,
    on_bases: Callable[[Bases], None] = lambda bases: None,
    normalisation: bool = False,
    low_precision: bool = False,
    memory: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> dict[str, Factors]:
    """Layer name to its factors, from the rows x (n, ...), in two passes over them.

    losses: `sampled_cross_entropy` for the true Fisher, `cross_entropy` for the empirical one. `basis_rows`,
    `eigenvalue_rows`: so many rows, drawn at random, make Q_A and Q_S, and Λ (default: all). `bases`: those of an
    earlier call, which spare the first pass; `on_bases` is called with new ones. `normalisation` as in
    `hooks.layers_of`; `low_precision`, `memory`, `on_rows` as in `hooks.visit_rows`.
    Raises: StageError where influence can't be traced through a layer, or a gradient overflows.
    """
    budget = budget_of(model, memory) // 2  # the other half is for the recording
    recording = Recording(budget if basis_rows == eigenvalue_rows else 0)
    visit = partial(
        visit_rows,
        model,
        x,
        losses,
        layers=layers_of(model, normalisation=normalisation),
        low_precision=low_precision,
        memory=budget,
        on_rows=on_rows,
    )
    if bases is None:
        dtype = next(model.parameters()).dtype
        bases = _bases(partial(visit, chosen=_drawn(len(x), basis_rows), record=recording), dtype)
        on_bases(bases)
    some = _drawn(len(x), eigenvalue_rows)
    count = len(x) if some is None else len(some)
    return _factors(partial(visit, chosen=some, replay=recording), bases, count)


def _bases(visit: Callable[..., None], dtype: torch.dtype) -> Bases:
    """Q_A and Q_S of every layer that the pass `visit` shows."""
    A: dict[str, Tensor] = {}
    S: dict[str, Tensor] = {}

    def add(name: str, rows: Rows, batch: LayerBatch) -> None:
        # float64, so that sums over many batches keep their digits
        A[name] = A.get(name, 0) + input_moment(batch.layer, batch.x).double()
        S[name] = S.get(name, 0) + second_moment(batch.g).double()

    visit(visit=add)
    bases: Bases = {}
    for name in list(A):
        Q_A, Q_S = eigenvectors(A.pop(name), name), eigenvectors(S.pop(name), name)
        bases[name] = Q_A.to(dtype).contiguous(), Q_S.to(dtype).contiguous()  # as they are read from a file
    return bases


def _factors(visit: Callable[..., None], bases: Bases, count: int) -> dict[str, Factors]:
    """The factors of every layer: Λ in its bases, from the pass `visit` over `count` rows."""
    factors = {
        name: Factors(Q_A, Q_S, Q_A.new_zeros(*Q_A.shape[:-2], Q_S.shape[-1], Q_A.shape[-1], dtype=torch.float64))
        for name, (Q_A, Q_S) in bases.items()
    }

    def add(name: str, rows: Rows, batch: LayerBatch) -> None:
        factors[name].Lambda.add_(rotated(batch, factors[name]).square_().sum(0), alpha=1 / count)

    visit(visit=add)
    return {name: Factors(f.Q_A, f.Q_S, f.Lambda.to(f.Q_A.dtype)) for name, f in factors.items()}


def _drawn(n: int, rows: int | None) -> Int[Tensor, " rows"] | None:
    """Indices of `rows` of n rows, at random but always the same; None for all of them."""
    if rows is None or rows >= n:
        return None
    return torch.randperm(n, generator=torch_stream(0, "rows of the factors"))[:rows].sort().values
