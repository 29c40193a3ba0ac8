"""EK-FAC: the curvature of a classifier, as one eigenbasis and one table of eigenvalues per layer.

George et al. 2018 (arXiv 1806.03884); for influence functions Grosse et al. 2023 (arXiv 2308.03296). The Fisher matrix
of a network is far too large to invert, but inside one layer the gradients of the weights nearly share the
eigenvectors of a Kronecker product of two small matrices. So only those bases are kept, and in them the true second
moments of the gradients.

    G_i = Σ_t g_it a_itᵀ            gradient of row i's loss by the layer's weights [W | b]
    A = Σ_it a aᵀ = Q_A E_A Q_Aᵀ    S = Σ_it g gᵀ = Q_S E_S Q_Sᵀ
    Ĝ_i = Q_Sᵀ G_i Q_A              Λ = mean_i Ĝ_i²  (elementwise)
    H⁻¹ V = Q_S [ (Q_Sᵀ V Q_A) / (Λ + λ) ] Q_Aᵀ,   λ = c · mean(Λ)

a, g and their shapes: `decant.influence.layer_gradients`. G, Ĝ (B, O, D), Λ (O, D); with a dimension of blocks before O where the layer
has several, each with bases of its own.

What is ours: G_i is formed inside the backward pass (`tracing.visit_rows`); each side of Ĝ is rotated where that is
cheaper, before the sum over t or after it; A of a convolution is found without its patches (`Trace.input_moment`),
and on a CPU G_i too (`Trace.gradients`); what the first pass saw is kept for the second, as far as memory allows
(`tracing.Kept`); memory is bounded by one budget, and batches change no result. Linear and Conv2d count, grouped ones
too; the scale and shift of normalisation layers are held fixed, as in kronfluence, unless they are asked for: then each
channel is a block. Any other layer with parameters is an error, not a silent omission.

Cost: two forward and backward passes over the rows, one of which is spared for rows whose traces are kept, and an
eigendecomposition per layer. Measured against kronfluence: `python -m benchmarks influence-speed`; agrees with its
version 1.0.1 (tests/test_influence.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import StageError
from decant.influence.hooks import Kept, Losses, Rows, budget_of, layers_of, visit_rows
from decant.influence.layer_gradients import Trace, moment

OFFICIAL_DAMPING = 1e-8  # λ where c = 0: kronfluence's default, which the code of Δ-Influence uses

Bases = dict[str, tuple[Tensor, Tensor]]
"""Layer name to (Q_A, Q_S)."""


@dataclass(frozen=True)
class Factors:
    """One layer's curvature."""

    Q_A: Tensor  # (D, D)
    Q_S: Tensor  # (O, O)
    Lambda: Tensor  # (O, D)

    def inverse(self, damping: float, *, absolute: bool = False) -> Tensor:
        """1 / (Λ + λ) (O, D), λ = damping · mean(Λ), or damping itself.

        Where that is 0 (also of a layer that no row has a gradient in) λ is the official absolute one.
        """
        scale = 1.0 if absolute else float(self.Lambda.mean())
        return 1 / (self.Lambda + (damping * scale or OFFICIAL_DAMPING))


# ---------------------------------------------------------------------------------------------------------------------
# Mathematics of one layer
# ---------------------------------------------------------------------------------------------------------------------


def rotated(trace: Trace, factors: Factors) -> Tensor:
    """Ĝ_i = Q_Sᵀ G_i Q_A (B, O, D), each side rotated in the cheaper order.

    The inputs' side costs T D² operations per row before the sum over places and O D² after it; the outputs' side
    T O² before and D O² after.
    """
    T, O, D = trace.g.shape[-2], factors.Q_S.shape[-1], factors.Q_A.shape[-1]
    g = (factors.Q_S.mT @ trace.g.mT).mT if T < D else trace.g  # as laid out for a convolution
    G = g.mT @ (trace.a @ factors.Q_A) if T < O else trace.gradients(g) @ factors.Q_A
    return G if T < D else factors.Q_S.mT @ G


def rotated_back(V: Tensor, factors: Factors) -> Tensor:
    """Q_S V Q_Aᵀ: from the eigenbasis (B, O, D) to the parameters."""
    return factors.Q_S @ V @ factors.Q_A.mT


def eigenvectors(second_moment: Tensor, layer: str) -> Tensor:
    """Q of a symmetric M = Q E Qᵀ, in float64: float32 loses the small directions, which the inverse magnifies."""
    if not second_moment.isfinite().all():
        raise StageError(f"layer {layer!r}: its inputs or gradients overflow; train the model with a lower rate")
    return torch.linalg.eigh(second_moment.double()).eigenvectors


# ---------------------------------------------------------------------------------------------------------------------
# The losses whose gradients make the Fisher matrix
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(y: Tensor) -> Losses:
    """The training loss of rows with labels y (N,). As the losses of `fit`, it gives the empirical Fisher."""
    return lambda logits, rows: F.cross_entropy(logits, y[rows].to(logits.device), reduction="none")


def sampled_cross_entropy(n: int, generator: torch.Generator) -> Losses:
    """Cross-entropy with labels drawn from the model's own softmax: as the losses of `fit`, the true Fisher.

    One uniform number per row is drawn ahead, so that neither the batch size nor a second pass changes a label.
    """
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64)

    def losses(logits: Tensor, rows: Rows) -> Tensor:
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
    """Layer name to its factors, from the rows x (N, ...); two passes over them.

    losses: `sampled_cross_entropy` for the true Fisher, `cross_entropy` for the empirical one. `basis_rows`,
    `eigenvalue_rows`: so many rows, drawn at random, make Q_A and Q_S, and Λ (default: all). `bases`: those of an
    earlier call, which spare the first pass; `on_bases` is told of them when they are new. `normalisation` as in
    `tracing.layers_of`; `low_precision`, `memory`, `on_rows` as in `tracing.visit_rows`.
    """
    # Half of the memory holds what the first pass saw, so that the second need not compute it again.
    room = budget_of(model, memory) // 2
    kept = Kept(room if basis_rows == eigenvalue_rows else 0)
    options: dict[str, Any] = {
        "layers": layers_of(model, normalisation=normalisation),
        "low_precision": low_precision,
        "memory": room,
        "on_rows": on_rows,
    }
    if bases is None:
        bases = _fit_bases(model, x, losses, keep=kept, chosen=_drawn(len(x), basis_rows), **options)
        on_bases(bases)
    return _fit_eigenvalues(model, x, losses, bases, kept=kept, chosen=_drawn(len(x), eigenvalue_rows), **options)


def _fit_bases(model: nn.Module, x: Tensor, losses: Losses, **options: Any) -> Bases:
    """Q_A and Q_S of every layer; one pass, with the options of `tracing.visit_rows`."""
    A: dict[str, Tensor] = {}
    S: dict[str, Tensor] = {}

    def add(name: str, rows: Rows, trace: Trace) -> None:
        # float64, so that sums over many batches keep their digits
        A[name] = A.get(name, 0) + trace.input_moment().double()
        S[name] = S.get(name, 0) + moment(trace.g).double()

    visit_rows(model, x, losses, add, **options)
    dtype = next(model.parameters()).dtype
    bases: Bases = {}
    for name in list(A):
        Q_A, Q_S = eigenvectors(A.pop(name), name), eigenvectors(S.pop(name), name)
        bases[name] = Q_A.to(dtype).contiguous(), Q_S.to(dtype).contiguous()  # as they are read from a file
    return bases


def _fit_eigenvalues(
    model: nn.Module, x: Tensor, losses: Losses, bases: Bases, *, chosen: Tensor | None, **options: Any
) -> dict[str, Factors]:
    """Λ of every layer in its bases; one pass, with the options of `tracing.visit_rows`."""
    count = len(x) if chosen is None else len(chosen)
    factors = {
        name: Factors(Q_A, Q_S, Q_A.new_zeros(*Q_A.shape[:-2], Q_S.shape[-1], Q_A.shape[-1], dtype=torch.float64))
        for name, (Q_A, Q_S) in bases.items()
    }

    def add(name: str, rows: Rows, trace: Trace) -> None:
        factors[name].Lambda.add_(rotated(trace, factors[name]).square_().sum(0), alpha=1 / count)

    visit_rows(model, x, losses, add, chosen=chosen, **options)
    return {name: Factors(f.Q_A, f.Q_S, f.Lambda.to(f.Q_A.dtype)) for name, f in factors.items()}


def _drawn(n: int, rows: int | None) -> Tensor | None:
    """Indices of `rows` of n rows, at random but always the same; None for all of them."""
    if rows is None or rows >= n:
        return None
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rows].sort().values
