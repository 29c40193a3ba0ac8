"""Influence functions: how much each training row supports a prediction (Koh & Liang 2017; Grosse et al. 2023).

    s_qi = ∇f(q)ᵀ H⁻¹ ∇L(i)         u_i = ∇L(i)ᵀ H⁻¹ ∇L(i)        u_q = ∇f(q)ᵀ H⁻¹ ∇f(q)

for queries q with functional f, training rows i with cross-entropy L, and EK-FAC's H (`decant.influence.ekfac`). Positive s:
training on row i lowers f(q), that is, it supports the label that the query carries. Unit: that of f, times the number
of rows; only comparisons within one model mean anything.

The functional is the negative margin by default. Cross-entropy can't work for the purpose of this project: a poisoned
model is sure of its wrong prediction, so the gradient of the cross-entropy of that prediction vanishes (measured in
tests/test_influence.py).

All queries and the self-influence u_i take one pass over the training rows: in the eigenbasis of each layer
s = ⟨Ĝ_q / (Λ + λ), Ĝ_i⟩ and u = Σ Ĝ_i² / (Λ + λ).

Cost: one forward and backward pass over the rows, and 2 Q P operations per row (Q queries, P weights). The queries
take Q P floats; where these don't fit the budget, chunks of queries, and of layers, take a pass each.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import StageError
from decant.influence.ekfac import Factors, cross_entropy, fit, rotated, rotated_back, sampled_cross_entropy
from decant.influence.hooks import Losses, Rows, Visit, budget_of, layers_of, visit_rows
from decant.influence.layer_gradients import Trace


def neg_margin(y: Tensor) -> Losses:
    """f = -(z_y - log Σ_{c≠y} exp z_c): unlike cross-entropy, its gradient stays where the model is sure."""

    def losses(logits: Tensor, rows: Rows) -> Tensor:
        own = y[rows].to(logits.device)[:, None]
        return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own).squeeze(1)

    return losses


FUNCTIONALS: Mapping[str, Callable[[Tensor], Losses]] = {"neg_margin": neg_margin, "cross_entropy": cross_entropy}


@dataclass(frozen=True)
class Influence:
    pairwise: Tensor  # (Q, N): s_qi
    query_self: Tensor  # (Q,): u_q
    train_self: Tensor | None  # (N,): u_i, where asked for

    def cosine(self) -> Tensor:
        """s_qi / (√u_q √u_i) (Q, N) in [-1, 1]: the cosine in the metric of H⁻¹; 0 where a gradient is 0.

        Self-normalised influence ("renormalised", Hammoudeh & Lowd 2022; RelatIF, Barshan et al. 2020): rows that are
        influential on everything, mislabelled ones above all, no longer drown those that speak to this query.
        """
        assert self.train_self is not None, "cosine() needs self_influence=True"
        norms = self.query_self.sqrt()[:, None] * self.train_self.sqrt()
        return torch.where(norms > 0, self.pairwise / norms, 0)


def influence(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    *,
    functional: str | Callable[[Tensor], Losses] = "neg_margin",
    factors: Mapping[str, Factors] | None = None,
    damping: float = 0.1,
    absolute: bool = False,
    self_influence: bool = True,
    low_precision: bool = False,
    memory: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Influence:
    """Influence of every training row on every query, for any classifier of Linear and Conv2d layers.

    train, queries: (inputs (N or Q, ...), labels (N or Q,) int64); inputs as in `tracing.visit_rows`. `functional`: a
    name of FUNCTIONALS, or a function that makes losses from the queries' labels. `factors`: default: true Fisher over
    the training rows (keep `ekfac.fit`'s result to ask more than once; `factor_files.cached` keeps it on disk).
    `damping`: share of each layer's mean eigenvalue, or `absolute`. `self_influence=False` spares the rotation of the
    training rows' gradients, where u_i is not needed. `low_precision` as in `visit_rows`. `memory`: bytes that tensors
    beside the model, the factors and the result may take. `on_rows` is told of the training rows done.

    Raises: StageError when a layer can't be traced, or a gradient overflows.
    """
    (x, y), (xq, yq) = train, queries
    if factors is None:
        losses = sampled_cross_entropy(len(x), torch.Generator().manual_seed(0))
        factors = fit(model, x, losses, low_precision=low_precision, memory=memory, on_rows=on_rows)
    ask = FUNCTIONALS[functional] if isinstance(functional, str) else functional
    place = next(model.parameters())
    result = Influence(
        pairwise=place.new_zeros(len(xq), len(x)),
        query_self=place.new_zeros(len(xq)),
        train_self=place.new_zeros(len(x)) if self_influence else None,
    )
    traced = layers_of(model, normalisation=True)
    room = budget_of(model, memory) // 2  # for the queries' gradients; the other half is a batch's
    for chunk, names in _chunks(factors, len(xq), room // place.element_size()):
        inverse = {name: factors[name].inverse(damping, absolute=absolute) for name in names}
        options: dict[str, Any] = {
            "layers": {name: traced[name] for name in names},
            "low_precision": low_precision,
            "memory": room,
        }
        keep_query, score = _visitors(factors, result, chunk, inverse)
        # Half of it: each query's gradient is held twice more, scaled and rotated back.
        visit_rows(model, xq[chunk], ask(yq[chunk]), keep_query, **{**options, "memory": room // 2})
        visit_rows(model, x, cross_entropy(y), score, on_rows=on_rows, **options)
    if not (result.pairwise.isfinite().all() and result.query_self.isfinite().all()):
        raise StageError("influence overflows; train the model with a lower rate, or raise the damping")
    return result


def _visitors(
    factors: Mapping[str, Factors], result: Influence, chunk: slice, inverse: Mapping[str, Tensor]
) -> tuple[Visit, Visit]:
    """(what keeps a chunk of queries' gradients of some layers, what adds these layers' part to their scores)."""
    V = {name: weight.new_zeros(chunk.stop - chunk.start, weight.numel()) for name, weight in inverse.items()}
    query_self, pairwise = result.query_self[chunk], result.pairwise[chunk]
    train_self = result.train_self if chunk.start == 0 else None  # once, not with every chunk

    def keep_query(name: str, rows: Rows, trace: Trace) -> None:
        G = rotated(trace, factors[name])
        scaled = G * inverse[name]
        query_self[rows] += (G * scaled).flatten(1).sum(1)
        V[name][rows] = (scaled if train_self is not None else rotated_back(scaled, factors[name])).flatten(1)

    def score(name: str, rows: Rows, trace: Trace) -> None:
        G = (rotated(trace, factors[name]) if train_self is not None else trace.gradients()).flatten(1)
        pairwise[:, rows] += V[name] @ G.T
        if train_self is not None:
            train_self[rows] += G.square_() @ inverse[name].flatten()

    return keep_query, score


def _chunks(factors: Mapping[str, Factors], queries: int, room: int) -> Iterator[tuple[slice, list[str]]]:
    """Groups of layers, each with as many queries at once as fit `room` floats beside 1 / (Λ + λ).

    A single layer that does not fit even for one query is a group by itself, for one query at a time.
    """
    groups: list[list[str]] = [[]]
    taken = 0
    for name, layer in factors.items():
        if groups[-1] and 2 * (taken + layer.Lambda.numel()) > room:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += layer.Lambda.numel()
    for names in groups:
        size = max(1, room // sum(factors[name].Lambda.numel() for name in names) - 1)
        for start in range(0, queries, size):
            yield slice(start, min(start + size, queries)), names
