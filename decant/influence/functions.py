"""Influence functions: how much each training row supports a prediction (Koh & Liang 2017; Grosse et al. 2023).

    s_qi = ∇f(q)ᵀ H⁻¹ ∇L(i)         u_i = ∇L(i)ᵀ H⁻¹ ∇L(i)        u_q = ∇f(q)ᵀ H⁻¹ ∇f(q)

Positive s: training on row i lowers f(q), that is, it supports the label that the query carries. Unit: that of f, times
the number of rows; only comparisons within one model mean anything.

Symbols:  q of the queries (q in number), i of the n training rows, p weights of all layers together
          f  functional of a query's logits, by default the negative margin       L  cross-entropy of a training row
          H  curvature, Ĝ gradients in its eigenbasis, Λ its eigenvalues, λ its damping: `decant.influence.ekfac`

The functional f is not cross-entropy, because a poisoned model is sure of its wrong prediction, so that the gradient of
the cross-entropy of that prediction vanishes (measured in tests/test_influence.py).

All queries and the self-influence u_i take one pass over the training rows. H is block-diagonal over the layers, so
both are sums over layers, and in the eigenbasis of a layer they are

    s_qi = ⟨Ĝ_q / (Λ + λ), Ĝ_i⟩         u_i = Σ Ĝ_i² / (Λ + λ)

Cost: one forward and backward pass over the rows, and 2 q p operations per row. The queries take q p floats; where
these don't fit the budget, chunks of queries, and of layers, take a pass each.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decant.errors import StageError
from decant.influence.ekfac import Factors, cross_entropy, fit, rotated, rotated_back, sampled_cross_entropy
from decant.influence.hooks import Losses, Rows, Visit, budget_of, layers_of, visit_rows
from decant.influence.layer_gradients import LayerBatch


def neg_margin(y: Int[Tensor, " n"]) -> Losses:
    """f = -(z_y - log Σ_{c≠y} exp z_c) of logits z: unlike cross-entropy, it has a gradient where the model is sure."""

    def losses(logits: Float[Tensor, "b classes"], rows: Rows) -> Float[Tensor, " b"]:
        own = y[rows].to(logits.device)[:, None]
        return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own).squeeze(1)

    return losses


FUNCTIONALS: Mapping[str, Callable[[Tensor], Losses]] = {"neg_margin": neg_margin, "cross_entropy": cross_entropy}


@dataclass(frozen=True)
class Influence:
    """Influence of n training rows on q queries."""

    pairwise: Float[Tensor, "q n"]
    """s_qi"""
    query_self: Float[Tensor, " q"]
    """u_q"""
    train_self: Float[Tensor, " n"] | None
    """u_i, with `self_influence`"""

    def cosine(self) -> Float[Tensor, "q n"]:
        """s_qi / (√u_q √u_i) in [-1, 1]: the cosine in the metric of H⁻¹; 0 where a gradient is 0.

        Self-normalised influence ("renormalised", Hammoudeh & Lowd 2022; RelatIF, Barshan et al. 2020): rows that are
        influential on everything, mislabelled ones above all, no longer rank before those that matter to this query.
        """
        assert self.train_self is not None, "cosine() needs self_influence=True"
        norms = self.query_self.sqrt()[:, None] * self.train_self.sqrt()
        return torch.where(norms > 0, self.pairwise / norms, 0)


def influence(
    model: nn.Module,
    train: tuple[Tensor, Int[Tensor, " n"]],
    queries: tuple[Tensor, Int[Tensor, " q"]],
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

    train, queries: (inputs (n or q, ...), labels (n or q,) int64); inputs as in `hooks.visit_rows`. `functional`: a
    name of FUNCTIONALS, or a function that makes losses from the queries' labels. `factors`: default: true Fisher over
    the training rows (keep `ekfac.fit`'s result to ask more than once; `factor_cache.cached` keeps it on disk).
    `damping`: λ as a share of each layer's mean eigenvalue, or λ itself where `absolute`. `self_influence=False` spares
    the rotation of the training rows' gradients, where u_i is not needed. `low_precision` as in `visit_rows`. `memory`:
    bytes that tensors beside the model, the factors and the result may take. `on_rows` is called with the number of
    training rows done.

    Raises: StageError when influence can't be traced through a layer, or a gradient overflows.
    """
    (x, y), (xq, yq) = train, queries
    if factors is None:
        losses = sampled_cross_entropy(len(x), seed=0)
        factors = fit(model, x, losses, low_precision=low_precision, memory=memory, on_rows=on_rows)
    functional = FUNCTIONALS[functional] if isinstance(functional, str) else functional
    weights, traced = next(model.parameters()), layers_of(model, normalisation=True)
    result = Influence(
        pairwise=weights.new_zeros(len(xq), len(x)),
        query_self=weights.new_zeros(len(xq)),
        train_self=weights.new_zeros(len(x)) if self_influence else None,
    )
    budget = budget_of(model, memory) // 2  # for the queries' gradients; the other half is a batch's
    for chunk, names in _chunks(factors, len(xq), budget // weights.element_size()):
        visit = partial(visit_rows, model, layers={name: traced[name] for name in names}, low_precision=low_precision)
        inverse = {name: factors[name].inverse(damping, absolute=absolute) for name in names}
        keep_query, score = _visitors(factors, result, chunk, inverse)
        # Half of the budget: each query's gradient is held twice more, scaled and rotated back.
        visit(xq[chunk], functional(yq[chunk]), keep_query, memory=budget // 2)
        visit(x, cross_entropy(y), score, memory=budget, on_rows=on_rows)
    if not (result.pairwise.isfinite().all() and result.query_self.isfinite().all()):
        raise StageError("influence overflows; train the model with a lower rate, or raise the damping")
    return result


def _visitors(
    factors: Mapping[str, Factors], result: Influence, chunk: slice, inverse: Mapping[str, Tensor]
) -> tuple[Visit, Visit]:
    """Visits of some layers: one keeps the gradients of a chunk of queries, one adds the layers' part of the scores.

    inverse: 1 / (Λ + λ) of each layer.
    """
    V = {name: weight.new_zeros(chunk.stop - chunk.start, weight.numel()) for name, weight in inverse.items()}
    query_self, pairwise = result.query_self[chunk], result.pairwise[chunk]
    train_self = result.train_self if chunk.start == 0 else None  # once, not with every chunk

    def keep_query(name: str, rows: Rows, batch: LayerBatch) -> None:
        G = rotated(batch, factors[name])
        scaled = G * inverse[name]
        query_self[rows] += (G * scaled).flatten(1).sum(1)
        V[name][rows] = (scaled if train_self is not None else rotated_back(scaled, factors[name])).flatten(1)

    def score(name: str, rows: Rows, batch: LayerBatch) -> None:
        G = (rotated(batch, factors[name]) if train_self is not None else batch.gradients()).flatten(1)
        pairwise[:, rows] += V[name] @ G.T
        if train_self is not None:
            train_self[rows] += G.square_() @ inverse[name].flatten()

    return keep_query, score


def _chunks(factors: Mapping[str, Factors], queries: int, budget: int) -> Iterator[tuple[slice, list[str]]]:
    """Groups of layers, each with as many queries at once as fit `budget` floats beside 1 / (Λ + λ).

    A single layer that does not fit even for one query is a group by itself, for one query at a time.
    """
    groups: list[list[str]] = [[]]
    taken = 0
    for name, layer in factors.items():
        if groups[-1] and 2 * (taken + layer.Lambda.numel()) > budget:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += layer.Lambda.numel()
    for names in groups:
        size = max(1, budget // sum(factors[name].Lambda.numel() for name in names) - 1)
        for start in range(0, queries, size):
            yield slice(start, min(start + size, queries)), names
