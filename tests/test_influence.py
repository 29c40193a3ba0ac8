"""Influence against dense matrices, retraining without each row, and kronfluence."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import autograd_gradients, rows, small_mixed_net, small_net
from samples import ROOT, digits
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import StageError
from decant.influence import ekfac
from decant.influence.functions import FUNCTIONALS, influence, neg_margin


def dense_inverse(factors: dict[str, ekfac.Factors], damping: float, *, absolute: bool) -> Tensor:
    """H⁻¹ of all layers, written out: block-diagonal over (Q_S ⊗ Q_A) diag(1 / (Λ + λ)) (Q_S ⊗ Q_A)ᵀ."""
    blocks = []
    for f in factors.values():
        basis = torch.kron(f.Q_S, f.Q_A)
        eigenvalues = f.Lambda.flatten() + damping * (1 if absolute else f.Lambda.mean())
        blocks.append(basis @ torch.diag(1 / eigenvalues) @ basis.T)
    return torch.block_diag(*blocks)


def margin_gradients(model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> Tensor:
    """Autograd's gradients of -(z_y - logsumexp of the others), flattened over `names`' layers: (Q, P)."""
    result = []
    for image, label in zip(x, y, strict=True):
        logits = model(image[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        layers = dict(model.named_modules())
        by_layer = []
        for name in names:
            parameters = [p for p in (layers[name].weight, layers[name].bias) if p is not None]
            grads = torch.autograd.grad(-(logits[label] - others.logsumexp(0)), parameters, retain_graph=True)
            by_layer.append(torch.cat([g.flatten(1) if g.ndim > 1 else g[:, None] for g in grads], 1).flatten())
        result.append(torch.cat(by_layer))
    return torch.stack(result)


@pytest.mark.parametrize("absolute", [False, True])
def test_equals_the_dense_construction(absolute: bool) -> None:
    model, (x, y), (xq, yq) = small_net(padding=1), rows(), rows(3, seed=9)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    found = influence(model, (x, y), (xq, yq), factors=factors, damping=0.1, absolute=absolute)
    H = dense_inverse(factors, 0.1, absolute=absolute)
    G = torch.stack([torch.cat([row[name].flatten() for name in factors]) for row in autograd_gradients(model, x, y)])
    q = margin_gradients(model, list(factors), xq, yq)
    torch.testing.assert_close(found.pairwise, q @ H @ G.T)
    torch.testing.assert_close(found.query_self, (q @ H * q).sum(1))
    torch.testing.assert_close(found.train_self, (G @ H * G).sum(1))


@pytest.mark.parametrize("network", [small_net, small_mixed_net])
@pytest.mark.parametrize("damping", [1e-6, 0.1, 10.0])
def test_mean_self_influence_is_the_effective_number_of_parameters(
    network: Callable[[], nn.Module], damping: float
) -> None:
    """mean_i u_i = Σ Λ / (Λ + λ) over all layers, because Λ is the mean of Ĝ²; and no row's own u_i is below 0."""
    model, (x, y) = network(), rows(20)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y), normalisation=True)
    found = influence(model, (x, y), (x[:1], y[:1]), factors=factors, damping=damping).train_self
    effective = sum((f.Lambda * f.inverse(damping)).sum() for f in factors.values())
    torch.testing.assert_close(found.mean(), effective)
    assert (found >= 0).all() and effective <= sum(f.Lambda.numel() for f in factors.values())


def test_influence_of_training_rows_on_their_losses_is_a_kernel() -> None:
    """s_ij = ∇L(i)ᵀ H⁻¹ ∇L(j): symmetric, without a negative eigenvalue, u_i on its diagonal, and a sum over layers."""
    model, (x, y) = small_net(padding=1), rows()
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))

    def kernel(factors: dict[str, ekfac.Factors]) -> Tensor:
        found = influence(model, (x, y), (x, y), factors=factors, functional="cross_entropy")
        torch.testing.assert_close(found.pairwise.diagonal(), found.train_self)
        return found.pairwise

    s = kernel(factors)
    torch.testing.assert_close(s, s.T)
    assert torch.linalg.eigvalsh(s).min() > -1e-9 * s.trace()
    torch.testing.assert_close(s, sum(kernel({name: factors[name]}) for name in factors))


def test_the_path_without_self_influence_gives_the_same_scores() -> None:
    model, (x, y), queries = small_net(padding=1), rows(), rows(3, seed=9)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    plain = influence(model, (x, y), queries, factors=factors)
    fast = influence(model, (x, y), queries, factors=factors, self_influence=False)
    torch.testing.assert_close(fast.pairwise, plain.pairwise)
    assert fast.train_self is None


@pytest.mark.parametrize("self_influence", [True, False])
def test_no_budget_changes_a_score(self_influence: bool) -> None:
    """From one row, one query and one layer at a time to all at once."""
    model, train, queries = small_net(padding=1), rows(11), rows(5, seed=9)
    factors = ekfac.fit(model, train[0], ekfac.cross_entropy(train[1]))
    plain, *others = (
        influence(model, train, queries, factors=factors, self_influence=self_influence, memory=memory)
        for memory in (None, 1, 2_500, 5_000, 300_000)
    )
    for other in others:
        torch.testing.assert_close(other.pairwise, plain.pairwise)
        torch.testing.assert_close(other.query_self, plain.query_self)
        if self_influence:
            torch.testing.assert_close(other.train_self, plain.train_self)


@pytest.mark.parametrize("memory", [2**20, 2**21])
def test_tensors_stay_within_the_budget(memory: int) -> None:
    """The most bytes of tensors alive at once, as PyTorch's allocator has them, beside what was there before.

    The 12 queries' gradients take 1.1 MiB, more than half of either budget; a batch of all rows would take 9 MiB.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, stride=2), nn.ReLU(), nn.AvgPool2d(3),
        nn.Flatten(), nn.Linear(256, 50), nn.ReLU(), nn.Linear(50, 10),
    )  # fmt: skip
    x, y = torch.rand(30, 1, 14, 14), torch.arange(30) % 10
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))

    def score() -> None:
        influence(model, (x, y), (x[:12], y[:12]), factors=factors, memory=memory)

    def eigenvalues() -> None:
        ekfac.fit(model, x, ekfac.cross_entropy(y), bases=bases, memory=memory)

    def both() -> None:
        ekfac.fit(model, x, ekfac.cross_entropy(y), memory=memory)

    bases = {name: (f.Q_A, f.Q_S) for name, f in factors.items()}
    moments = sum(8 * (len(f.Q_A) ** 2 + len(f.Q_S) ** 2) for f in factors.values())
    result = 4 * 12 * 30 + sum(8 * f.Lambda.numel() for f in factors.values())
    assert peak_bytes(score) <= memory + result
    assert peak_bytes(eigenvalues) <= memory + result
    assert peak_bytes(both) <= memory + result + 3 * moments  # sums in float64, those of a batch, eigenvectors


def peak_bytes(work: Callable[[], None]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    taken = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(taken, key=lambda event: event.start_ns())]).max())


def test_many_queries_on_a_wide_layer_stay_within_the_budget() -> None:
    """Where a query's gradient is most of what it takes: held plain, scaled, and rotated back."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    x, y, memory = torch.rand(30, 1, 20, 20), torch.arange(30) % 10, 2**24
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))

    def score() -> None:
        influence(model, (x, y), (x, y), factors=factors, self_influence=False, memory=memory)

    result = 4 * 30 * 30 + sum(8 * f.Lambda.numel() for f in factors.values())
    assert peak_bytes(score) <= memory + result


def test_a_layer_that_no_row_reaches_spoils_no_score() -> None:
    """A residual branch that is dead on all rows: no gradient, no curvature, and a relative damping of 0."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.dead(x).relu()

    model = nn.Sequential(Branch(), nn.Linear(4, 3)).double()
    torch.nn.init.constant_(model[0].dead.bias, -100)
    x, y = torch.rand(20, 4, dtype=torch.float64), torch.arange(20) % 3
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    assert float(factors["0.dead"].Lambda.abs().max()) == 0
    found = influence(model, (x, y), (x[:2], y[:2]), factors=factors)
    head = influence(model, (x, y), (x[:2], y[:2]), factors={"1": factors["1"]})
    torch.testing.assert_close(found.cosine(), head.cosine())


def test_overflow_of_a_score_is_an_error() -> None:
    model, train = small_net(padding=1), rows()
    factors = {
        name: replace(f, Lambda=f.Lambda * 0)
        for name, f in ekfac.fit(model, train[0], ekfac.cross_entropy(train[1])).items()
    }
    with pytest.raises(StageError, match="influence overflows"):
        influence(model, train, train, factors=factors, damping=1e-320, absolute=True)


def test_low_precision_keeps_the_order_of_the_rows() -> None:
    model, train, queries = small_net(padding=1).float(), rows(40), rows(3, seed=9)
    factors = ekfac.fit(model, train[0], ekfac.cross_entropy(train[1]))
    full, low = (influence(model, train, queries, factors=factors, low_precision=low) for low in (False, True))
    assert low.pairwise.dtype == torch.float32 and not torch.equal(low.pairwise, full.pairwise)
    assert torch.corrcoef(torch.stack([full.pairwise.flatten(), low.pairwise.flatten()]))[0, 1] > 0.99
    rough = ekfac.fit(model, train[0], ekfac.cross_entropy(train[1]), low_precision=True)
    for name, layer in rough.items():
        torch.testing.assert_close(layer.Lambda.sum(), factors[name].Lambda.sum(), rtol=0.05, atol=0)


def test_cosine_of_a_row_with_itself_is_one() -> None:
    model, (x, y) = small_net(padding=1), rows()
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    cosine = influence(model, (x, y), (x, y), factors=factors, functional="cross_entropy").cosine()
    torch.testing.assert_close(cosine.diagonal(), torch.ones(len(x), dtype=torch.float64))
    assert cosine.abs().max() <= 1 + 1e-12


def test_a_row_without_gradient_has_cosine_zero() -> None:
    model = nn.Linear(2, 2).double()
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0, 1])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4, 0.0], [0.0, 1.0]]))  # the first row's p is 1 even in float64
        model.bias.zero_()
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    cosine = influence(model, (x, y), (x, y), factors=factors).cosine()
    assert cosine[:, 0].eq(0).all() and cosine.isfinite().all()


def test_margin_is_the_log_odds_of_the_label() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    p = logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(neg_margin(y)(logits, slice(0, 5)), torch.log((1 - p) / p))


def test_groups_and_normalisations_count_as_blocks() -> None:
    """Against autograd's gradients, rotated and damped block by block."""
    model, (x, y) = small_mixed_net(), rows(9)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y), normalisation=True)
    found = influence(model, (x, y), (x[:2], y[:2]), factors=factors, functional="cross_entropy")
    expected = torch.zeros(2, 9, dtype=torch.float64)
    gradients = autograd_gradients(model, x, y, normalisation=True)
    for name, f in factors.items():
        G = torch.stack([row[name] for row in gradients])
        rotated = (f.Q_S.mT @ G @ f.Q_A).flatten(1)
        torch.testing.assert_close(rotated.square().mean(0), f.Lambda.flatten())
        expected += rotated[:2] / (f.Lambda + 0.1 * f.Lambda.mean()).flatten() @ rotated.T
    torch.testing.assert_close(found.pairwise, expected)


def test_factors_are_fitted_where_none_are_given() -> None:
    model, train, queries = small_net(padding=1), rows(), rows(3, seed=9)
    losses = ekfac.sampled_cross_entropy(len(train[0]), seed=0)
    given = influence(model, train, queries, factors=ekfac.fit(model, train[0], losses))
    assert torch.equal(influence(model, train, queries).pairwise, given.pairwise)


def test_the_example_of_the_page_runs() -> None:
    page = (ROOT / "docs/methods/influence.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert len(set(names["top"].tolist()) & set(range(names["planted"]))) >= 0.9 * len(names["top"])


# what the scores mean ------------------------------------------------------------------------------------------------


def fitted(model: nn.Module, x: Tensor, y: Tensor, weight_decay: float) -> nn.Module:
    """The minimum of mean cross-entropy + weight_decay/2 |w|², by Newton's method with line search (LBFGS)."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        decay = sum(p.square().sum() for p in model.parameters())
        value = F.cross_entropy(model(x), y) + weight_decay / 2 * decay
        value.backward()
        return value

    optimizer.step(loss)
    return model


def test_scores_foretell_retraining_without_each_row() -> None:
    """Logistic regression on three digits: the margin lost by leaving a row out, retrained, against its score."""
    train, test = digits()
    chosen = np.flatnonzero(np.isin(train.labels, [3, 5, 8]))[:90]
    asked = np.flatnonzero(np.isin(test.labels, [3, 5, 8]))[:3]
    classes = {3: 0, 5: 1, 8: 2}

    def tensors(images, which) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(images.pixels[which, ::4, ::4, 0] / 255).flatten(1)  # (n, 16) float64
        return pixels, torch.tensor([classes[label] for label in images.labels[which].tolist()])

    (x, y), (xq, yq) = tensors(train, chosen), tensors(test, asked)
    start, decay = nn.Linear(16, 3).double(), 0.01
    model = fitted(start, x, y, decay)
    factors = ekfac.fit(model, x.repeat(50, 1), ekfac.sampled_cross_entropy(50 * len(x), seed=0))
    share = decay / float(factors[""].Lambda.mean())  # the weight decay is the damping: H = Fisher + decay I
    scores = influence(model, (x, y), (xq, yq), factors=factors, damping=share).pairwise.numpy()

    before, every = neg_margin(yq)(model(xq), slice(0, 3)).detach(), slice(0, 3)
    lost = []
    for left_out in range(len(x)):
        kept = torch.arange(len(x)) != left_out
        without = fitted(model, x[kept], y[kept], decay)
        lost.append((neg_margin(yq)(without(xq), every).detach() - before).numpy())
    for query in range(3):
        assert np.corrcoef(scores[query], np.stack(lost)[:, query])[0, 1] > 0.9
        # positive: the row supports the label. Left out, the negative margin grows by about s / n.
        slope = np.polyfit(scores[query] / len(x), np.stack(lost)[:, query], 1)[0]
        assert 0.5 < slope < 2


def test_cross_entropy_of_a_sure_prediction_says_nothing() -> None:
    """Why the margin is the default: at an affected point p is about 1, and its cross-entropy has no gradient left."""
    model, (x, y), (xq, _) = small_net(padding=1), rows(), rows(1, seed=9)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([40.0, 0.0, 0.0]))
    factors = ekfac.fit(small_net(padding=1), x, ekfac.cross_entropy(y))
    sure = (xq, torch.tensor([0]))
    by = {
        name: influence(model, (x, y), sure, factors=factors, functional=name).query_self.item() for name in FUNCTIONALS
    }
    assert by["cross_entropy"] < 1e-20 * by["neg_margin"]


# the peer library ----------------------------------------------------------------------------------------------------


def test_agrees_with_kronfluence(tmp_path) -> None:
    """Pairwise scores and self-influence of kronfluence 1.0.1, empirical Fisher, damping 0.1 of the mean eigenvalue."""
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class Margin(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return neg_margin(batch[1])(model(batch[0]), slice(None)).sum()

    model, (x, y), (xq, yq) = small_net(padding=1), rows(24), rows(3, seed=9)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    ours = influence(model, (x, y), (xq, yq), factors=factors, damping=0.1)

    task = Margin()
    peer = Analyzer("decant", prepare_model(copy.deepcopy(model), task), task, cpu=True, output_dir=str(tmp_path))
    precise = {"amp_dtype": None}
    fitting = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        activation_covariance_dtype=torch.float64,
        gradient_covariance_dtype=torch.float64,
        lambda_dtype=torch.float64,
        per_sample_gradient_dtype=torch.float64,
        **precise,
    )
    scoring = ScoreArguments(
        damping_factor=None,  # 0.1 of the mean eigenvalue of each layer
        score_dtype=torch.float64,
        per_sample_gradient_dtype=torch.float64,
        precondition_dtype=torch.float64,
        **precise,
    )
    data, asked = TensorDataset(x, y), TensorDataset(xq, yq)
    peer.fit_all_factors("f", data, per_device_batch_size=8, factor_args=fitting, overwrite_output_dir=True)
    peer.compute_pairwise_scores(
        "s",
        "f",
        asked,
        data,
        per_device_query_batch_size=3,
        per_device_train_batch_size=8,
        score_args=scoring,
        overwrite_output_dir=True,
    )
    pairwise = peer.load_pairwise_scores("s")["all_modules"]
    peer.compute_self_scores(
        "u", "f", data, per_device_train_batch_size=8, score_args=scoring, overwrite_output_dir=True
    )
    own = peer.load_self_scores("u")["all_modules"]
    torch.testing.assert_close(ours.pairwise, pairwise, rtol=1e-5, atol=1e-5 * float(pairwise.abs().max()))
    torch.testing.assert_close(ours.train_self, own, rtol=1e-5, atol=0)
