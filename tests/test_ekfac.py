"""EK-FAC's factors against dense matrices and autograd, in float64."""

from typing import Any

import pytest
import torch
from nets import autograd_gradients, rows, small_mixed_net, small_net
from torch import Tensor, nn

from decant.errors import StageError
from decant.influence import ekfac, hooks, layer_gradients


def collected(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> dict[str, Tensor]:
    """Layer name to G (N, O, D), as `visit_rows` shows it."""
    parts: dict[str, list[Tensor]] = {}
    ekfac.visit_rows(
        model,
        x,
        ekfac.cross_entropy(y),
        lambda name, rows, batch: parts.setdefault(name, []).append(batch.gradients()),
        **options,
    )
    return {name: torch.cat(part) for name, part in parts.items()}


# per-sample gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": (2, 1), "dilation": (2, 1), "stride": (1, 2)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"padding": 2, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_each_rows_gradient_is_autograds(conv: dict[str, object]) -> None:
    model, (x, y) = small_net(**conv), rows(4)
    truth = autograd_gradients(model, x, y)
    for name, G in collected(model, x, y).items():
        torch.testing.assert_close(G, torch.stack([row[name] for row in truth]), rtol=1e-9, atol=1e-12)


def test_gradients_of_groups_and_normalisations_are_autograds() -> None:
    model, (x, y) = small_mixed_net(), rows(4)
    layers = ekfac.layers_of(model, normalisation=True)
    assert len(layers) == 8
    truth = autograd_gradients(model, x, y, normalisation=True)
    for name, G in collected(model, x, y, layers=layers).items():
        torch.testing.assert_close(G, torch.stack([row[name] for row in truth]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 5, "padding": 2, "stride": 2, "bias": False},
        {"kernel_size": (4, 2), "dilation": (1, 2), "padding_mode": "circular", "padding": 1},
        {"kernel_size": 3, "dilation": 2, "stride": 2},
        {"kernel_size": (3, 1), "dilation": 2, "stride": 3},
        {"kernel_size": 9, "padding": 4},
        {"kernel_size": 3, "groups": 2},
    ],
    ids=str,
)
def test_moment_of_a_convolutions_inputs_is_that_of_its_patches(conv: dict[str, object]) -> None:
    layer = nn.Conv2d(4, 2, **conv).double()
    x = torch.randn(3, 4, 11, 12, dtype=torch.float64)
    expected = layer_gradients.second_moment(layer_gradients.inputs_of(layer, x))
    torch.testing.assert_close(layer_gradients.input_moment(layer, x), expected, rtol=1e-10, atol=1e-10)


def test_linear_over_positions_sums_its_places() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Flatten(), nn.Linear(15, 3)).double()
    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    truth = autograd_gradients(model, x, y)
    for name, G in collected(model, x, y).items():
        torch.testing.assert_close(G, torch.stack([row[name] for row in truth]))


def test_a_sure_models_gradient_keeps_its_direction_in_float32() -> None:
    """1 - p = 2e-11 is 0 in float32; the gradient by the logits still has to sum to zero."""
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[25.0], [0.0], [-1.0]]))
        model.bias.zero_()
    G = collected(model, torch.ones(1, 1), torch.tensor([0]))[""][0, :, 0]
    assert G[0] < 0 and abs(G.sum()) < 1e-6 * G.abs().sum()


def test_parameters_and_mode_are_as_before() -> None:
    model, (x, y) = small_net().train(), rows(4)
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collected(model, x, y)
    assert model.training and model[3].training
    assert not model[0].weight.requires_grad and model[2].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_uint8_images_are_read_as_0_to_1() -> None:
    model, y = small_net(), torch.tensor([0, 1])
    pixels = torch.randint(0, 256, (2, 2, 9, 8), dtype=torch.uint8)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            collected(model, pixels, y).values(), collected(model, pixels.double() / 255, y).values(), strict=True
        )
    )


# the factors ---------------------------------------------------------------------------------------------------------


def test_rotating_first_equals_rotating_the_gradient() -> None:
    """Both orders occur: few places of a wide layer, many places of a narrow one."""
    for T, O, D in ((1, 8, 16), (200, 3, 5)):
        a, g = torch.randn(4, T, D, dtype=torch.float64), torch.randn(4, T, O, dtype=torch.float64)
        Q_A, Q_S = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in (D, O))
        factors = ekfac.Factors(Q_A, Q_S, torch.ones(O, D, dtype=torch.float64))
        batch = layer_gradients.LayerBatch(nn.Linear(D, O, bias=False), a, g)
        plain = torch.einsum("po,bto,btd,dq->bpq", Q_S.T, g, a, Q_A)
        torch.testing.assert_close(ekfac.rotated(batch, factors), plain)
        torch.testing.assert_close(ekfac.rotated_back(plain, factors), batch.gradients())


def test_factors_are_the_second_moments_of_autograds_gradients() -> None:
    model, (x, y) = small_net(padding=1), rows()
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))
    truth = autograd_gradients(model, x, y)
    for name, f in factors.items():
        G = torch.stack([row[name] for row in truth])
        identity = torch.eye(len(f.Q_A), dtype=torch.float64)
        torch.testing.assert_close(f.Q_A.T @ f.Q_A, identity, rtol=0, atol=1e-12)
        torch.testing.assert_close((f.Q_S.T @ G @ f.Q_A).square().mean(0), f.Lambda)
        # The trace of the layer's Fisher does not depend on the basis.
        torch.testing.assert_close(f.Lambda.sum(), G.square().sum((1, 2)).mean())


def test_the_bases_diagonalise_the_two_moments() -> None:
    model, (x, y) = small_net(padding=1), rows()
    inputs, outgoing = [], []
    ekfac.visit_rows(
        model,
        x,
        ekfac.cross_entropy(y),
        lambda name, rows, batch: (inputs.append(batch.a), outgoing.append(batch.g)) if name == "2" else None,
    )
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))["2"]
    for Q, values in ((factors.Q_A, inputs), (factors.Q_S, outgoing)):
        v = torch.cat(values).flatten(0, 1)
        E = Q.T @ v.T @ v @ Q
        torch.testing.assert_close(E, torch.diag(E.diagonal()), rtol=0, atol=1e-9 * float(E.abs().max()))


def test_exact_where_the_fisher_is_a_kronecker_product() -> None:
    """With zero weights every row has the same distribution of output gradients, so the Fisher is exactly S ⊗ A."""
    model = nn.Linear(4, 3).double()
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    x = torch.randn(7, 4, dtype=torch.float64).repeat_interleave(3, 0)  # each row once with each of the 3 labels
    y = torch.arange(3).repeat(7)
    layer = ekfac.fit(model, x, ekfac.cross_entropy(y))[""]
    G = torch.stack([row[""] for row in autograd_gradients(model, x, y)]).flatten(1)
    fisher = G.T @ G / len(G)
    damping = 0.1 * fisher.trace() / len(fisher)
    dense = torch.linalg.inv(fisher + damping * torch.eye(len(fisher), dtype=torch.float64))
    basis = torch.kron(layer.Q_S, layer.Q_A)
    torch.testing.assert_close(basis @ torch.diag(layer.inverse(0.1).flatten()) @ basis.T, dense)


def test_without_damping_scores_are_those_of_the_pseudo_inverse() -> None:
    """Where the Fisher is exactly S ⊗ A. It is singular: softmax's gradients sum to 0 over the classes."""
    model = nn.Linear(4, 3).double()
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    x = torch.randn(7, 4, dtype=torch.float64).repeat_interleave(3, 0)
    y = torch.arange(3).repeat(7)
    factors = ekfac.fit(model, x, ekfac.cross_entropy(y))[""]
    G = torch.stack([row[""] for row in autograd_gradients(model, x, y)])
    flat = G.flatten(1)
    fisher = flat.T @ flat / len(flat)
    rotated = (factors.Q_S.T @ G @ factors.Q_A).flatten(1)
    found = rotated * factors.inverse(1e-12, absolute=True).flatten() @ rotated.T
    torch.testing.assert_close(found, flat @ torch.linalg.pinv(fisher, hermitian=True) @ flat.T, rtol=1e-7, atol=1e-7)


def test_true_fisher_is_the_mean_over_the_models_own_labels() -> None:
    """Sampled many times, Λ tends to the expectation over p(y|x), computed here with every label weighed by p."""
    model, (x, _) = small_net(), rows(6)
    many = x.repeat(1500, 1, 1, 1)
    losses = ekfac.sampled_cross_entropy(len(many), seed=0)
    factors = ekfac.fit(model, many, losses)
    p = model(x).softmax(1).detach()
    for name, f in factors.items():
        expected = torch.zeros((), dtype=torch.float64)
        for label in range(3):
            G = torch.stack([row[name] for row in autograd_gradients(model, x, torch.full((6,), label))])
            expected += (p[:, label] * G.square().sum((1, 2))).mean()
        torch.testing.assert_close(f.Lambda.sum(), expected, rtol=0.06, atol=0)


def test_bases_and_eigenvalues_may_come_from_fewer_rows() -> None:
    model, (x, y) = small_net(padding=1), rows(30)
    some = ekfac._drawn(30, 12)
    losses = ekfac.cross_entropy(y)
    few = ekfac.fit(model, x[some], ekfac.cross_entropy(y[some]))
    mixed = ekfac.fit(model, x, losses, basis_rows=12)
    both = ekfac.fit(model, x, losses, basis_rows=12, eigenvalue_rows=12)
    for name, f in few.items():
        assert torch.equal(mixed[name].Q_A, f.Q_A) and torch.equal(mixed[name].Q_S, f.Q_S)
        torch.testing.assert_close(both[name].Lambda, f.Lambda)
        assert not torch.allclose(mixed[name].Lambda, f.Lambda)
    G = torch.stack([row["2"] for row in autograd_gradients(model, x, y)])
    f = mixed["2"]
    torch.testing.assert_close((f.Q_S.T @ G @ f.Q_A).square().mean(0), f.Lambda)


def test_batch_size_and_repetition_change_nothing() -> None:
    model, (x, _) = small_net(padding=1), rows(11)
    fits = [
        ekfac.fit(model, x, ekfac.sampled_cross_entropy(11, seed=5), memory=memory) for memory in (1, 300_000, None)
    ]
    for name in fits[0]:
        for other in fits[1:]:
            torch.testing.assert_close(other[name].Lambda, fits[0][name].Lambda, rtol=1e-7, atol=1e-12)


def test_batches_are_bounded_by_memory() -> None:
    model, (x, y) = small_net(padding=1), rows(40)
    sizes: list[int] = []
    for memory in (1, 600_000, 10**9):
        sizes.append(0)
        ekfac.visit_rows(
            model,
            x,
            ekfac.cross_entropy(y),
            lambda name, rows, batch: sizes.__setitem__(-1, max(sizes[-1], len(batch.x))),
            memory=memory,
        )
    assert sizes[0] == 1 and 1 < sizes[1] < 40 and sizes[2] == 40


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 40, 40),  # all of the first pass is kept, so that the second computes nothing
        ({"memory": 100_000}, 41, 79),  # some of it
        ({"memory": 1}, 80, 80),  # nothing
        ({"basis_rows": 39}, 79, 79),  # the passes see different rows
        ({"bases": True}, 40, 40),  # there is no first pass
    ],
    ids=str,
)
def test_what_the_first_pass_keeps_spares_the_second_its_rows(options: dict[str, Any], least: int, most: int) -> None:
    model, (x, y) = small_net(padding=1), rows(40)
    given, computed = ekfac.cross_entropy(y), []

    def losses(logits: Tensor, rows: hooks.Rows) -> Tensor:
        computed.append(len(logits))
        return given(logits, rows)

    bases = {name: (f.Q_A, f.Q_S) for name, f in ekfac.fit(model, x, given, memory=1).items()}
    found = ekfac.fit(model, x, losses, **options | ({"bases": bases} if "bases" in options else {}))
    assert least <= sum(computed) <= most
    G = torch.stack([row["2"] for row in autograd_gradients(model, x, y)])
    expected = (found["2"].Q_S.T @ G @ found["2"].Q_A).square().mean(0)
    torch.testing.assert_close(found["2"].Lambda, expected, rtol=1e-7, atol=1e-12)


def test_no_damping_means_the_official_absolute_one() -> None:
    factors = ekfac.Factors(torch.eye(2), torch.eye(1), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(factors.inverse(0), torch.tensor([[1e8, 1.0]]))
    torch.testing.assert_close(factors.inverse(1), torch.tensor([[2.0, 2 / 3]]))
    torch.testing.assert_close(factors.inverse(1, absolute=True), torch.tensor([[1.0, 0.5]]))


# what can't be traced ------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        out = self.last(hidden)
        hidden += 1
        return out + hidden


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), "layer '1': its statistics"),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU()), "layer '1'.*PReLU found"),
        (Twice(), "layer 'layer': must be used once"),
        (ChangesItsInput(), "layer 'last': its input is changed in place"),
    ],
    ids=["batch statistics", "unknown", "twice", "in place"],
)
def test_a_layer_that_cant_be_traced_is_named(model: nn.Module, says: str) -> None:
    with pytest.raises(StageError, match=says):
        ekfac.fit(model, torch.randn(2, 4), ekfac.cross_entropy(torch.tensor([0, 1])))


def test_overflow_is_an_error_that_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(StageError, match="layer '0': its inputs or gradients overflow"):
        ekfac.fit(model, torch.full((2, 2), torch.inf), ekfac.cross_entropy(torch.tensor([0, 1])))
