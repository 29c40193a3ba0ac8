"""EK-FAC: the curvature of a classifier, as one eigenbasis and one table of eigenvalues per layer.

George et al. 2018 (arXiv 1806.03884); for influence functions Grosse et al. 2023 (arXiv 2308.03296). The Fisher matrix
of a network is far too large to invert, but inside one layer the gradients of the weights nearly share the
eigenvectors of a Kronecker product of two small matrices. So only those bases are kept, and in them the true second
moments of the gradients.

    G_i = Σ_t g_it a_itᵀ            gradient of row i's loss by the layer's weights [W | b]
    A = Σ_it a aᵀ = Q_A E_A Q_Aᵀ    S = Σ_it g gᵀ = Q_S E_S Q_Sᵀ
    Ĝ_i = Q_Sᵀ G_i Q_A              Λ = mean_i Ĝ_i²  (elementwise)
    H⁻¹ V = Q_S [ (Q_Sᵀ V Q_A) / (Λ + λ) ] Q_Aᵀ,   λ = c · mean(Λ)

Shapes:  N rows   B rows of a batch   O outputs of the layer   D inputs, plus 1 where it has a bias
         T places where the layer meets a row: 1 for a Linear on vectors, the output's pixels for a Conv2d
         a (B, T, D) inputs   g (B, T, O) gradients at the outputs   G, Ĝ (B, O, D)   Λ (O, D)

What is ours: G_i is formed inside the backward pass, layer by layer, from the gradients at the layers' outputs alone
(parameters need none, which saves a third of the backward pass); Ĝ is computed in the cheaper of two orders; batches
are bounded by memory, and their size changes no result. Linear and Conv2d count; the scale and shift of normalisation
layers are held fixed, as in kronfluence. Any other layer with parameters is an error, not a silent omission.

Cost: two forward and backward passes over the rows, and an eigendecomposition per layer. small_cnn on 2,874 digits of
16 x 16: about 3 s on one CPU core. Agrees with kronfluence 1.0.1 (tests/test_influence.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import StageError

Losses = Callable[[Tensor, slice], Tensor]
"""losses(logits (B, K) float64, rows) -> (B,): each row's own loss; `rows` says which of the N rows the batch holds."""

Visit = Callable[[str, slice, Tensor, Tensor], None]
"""visit(layer, rows, a, g), called once per layer and batch."""

BATCH_BYTES = {"cpu": 128 * 2**20, "cuda": 4 * 2**30}  # a CPU gains nothing from batches that leave its cache
OFFICIAL_DAMPING = 1e-8  # λ where c = 0: kronfluence's default, which the code of Δ-Influence uses

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Factors:
    """One layer's curvature."""

    Q_A: Tensor  # (D, D)
    Q_S: Tensor  # (O, O)
    Lambda: Tensor  # (O, D)

    def inverse(self, damping: float) -> Tensor:
        """1 / (Λ + λ) (O, D), λ = damping · mean(Λ); damping 0 stands for the official absolute λ."""
        return 1 / (self.Lambda + (damping * self.Lambda.mean() if damping else OFFICIAL_DAMPING))


# ---------------------------------------------------------------------------------------------------------------------
# Mathematics of one layer
# ---------------------------------------------------------------------------------------------------------------------


def gradients(a: Tensor, g: Tensor) -> Tensor:
    """G_i = Σ_t g_it a_itᵀ: (B, T, D), (B, T, O) -> (B, O, D)."""
    return g.transpose(1, 2) @ a


def rotated(a: Tensor, g: Tensor, factors: Factors) -> Tensor:
    """Ĝ_i = Q_Sᵀ G_i Q_A (B, O, D), by rotating a and g first where that is the cheaper order.

    Rotating the gradient costs 2·OD(O + D) operations per row, rotating its two factors 2·T(D² + O²).
    """
    T, D, O = a.shape[1], a.shape[2], g.shape[2]
    if T * (D**2 + O**2) < O * D * (O + D):
        return gradients(a @ factors.Q_A, g @ factors.Q_S)
    return factors.Q_S.T @ gradients(a, g) @ factors.Q_A


def rotated_back(V: Tensor, factors: Factors) -> Tensor:
    """Q_S V Q_Aᵀ: from the eigenbasis (B, O, D) to the parameters."""
    return factors.Q_S @ V @ factors.Q_A.T


def eigenvectors(moment: Tensor, layer: str) -> Tensor:
    """Q of a symmetric M = Q E Qᵀ, in float64: float32 loses the small directions, which the inverse magnifies."""
    if not moment.isfinite().all():
        raise StageError(f"layer {layer!r}: its inputs or gradients overflow; train the model with a lower rate")
    return torch.linalg.eigh(moment.double()).eigenvectors


def inputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    """a (B, T, D) of the layer's input: patches of a Conv2d, positions of a Linear; a 1 is appended for the bias."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(F.pad(x, _padding(layer)), layer.kernel_size, layer.dilation, 0, layer.stride)
        a = patches.transpose(1, 2)
    else:
        a = x.reshape(len(x), -1, x.shape[-1])
    return a if layer.bias is None else F.pad(a, (0, 1), value=1.0)


def output_gradients_of(layer: nn.Module, gradient: Tensor) -> Tensor:
    """g (B, T, O) of the gradient at the layer's output, its places in the same order as in `inputs_of`."""
    if isinstance(layer, nn.Conv2d):
        return gradient.flatten(2).transpose(1, 2)
    return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros (left, right, top, bottom) that the convolution adds to its input."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return width // 2, width - width // 2, height // 2, height - height // 2
    assert isinstance(layer.padding, tuple)
    height, width = layer.padding
    return width, width, height, height


# ---------------------------------------------------------------------------------------------------------------------
# Each row's gradients, layer by layer
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(y: Tensor) -> Losses:
    """The training loss of rows with labels y (N,). As the losses of `fit`, it gives the empirical Fisher."""
    return lambda logits, rows: F.cross_entropy(logits, y[rows].to(logits.device), reduction="none")


def sampled_cross_entropy(n: int, generator: torch.Generator) -> Losses:
    """Cross-entropy with labels drawn from the model's own softmax: as the losses of `fit`, the true Fisher.

    One uniform number per row is drawn ahead, so that neither the batch size nor a second pass changes a label.
    """
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64)

    def losses(logits: Tensor, rows: slice) -> Tensor:
        # On the CPU: cumsum has no deterministic CUDA kernel.
        below = logits.detach().softmax(1).cpu().cumsum(1) < uniform[rows]
        labels = below.sum(1).clamp(max=logits.shape[1] - 1).to(logits.device)
        return F.cross_entropy(logits, labels, reduction="none")

    return losses


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that count, by name. Raises StageError for one with parameters that EK-FAC does not know."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
                raise StageError(
                    f"layer {name!r}: a Conv2d with groups=1 and padding with zeros expected, "
                    f"groups={module.groups}, padding_mode={module.padding_mode!r} found; influence can't be traced"
                )
            layers[name] = module
        elif next(module.parameters(recurse=False), None) is not None and not isinstance(module, NORMALISATION):
            kind = type(module).__name__
            raise StageError(f"layer {name!r}: Linear, Conv2d or a normalisation expected, {kind} found")
    return layers


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and parameters without gradients inside; as they were afterwards."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def visit_rows(
    model: nn.Module,
    x: Tensor,
    losses: Losses,
    visit: Visit,
    *,
    batch_bytes: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Back-propagates every row's loss, and shows `visit` each layer's a and g, batch after batch.

    x: (N, ...) float, or uint8, which is read as [0, 1]; on any device. `batch_bytes` bounds the memory of a batch;
    `on_rows` is told how many rows are done. Raises StageError where a layer can't be traced.
    """
    layers = layers_of(model)
    with _frozen(model):
        place = next(model.parameters())
        budget = batch_bytes or BATCH_BYTES.get(place.device.type, BATCH_BYTES["cpu"])
        size = _rows_per_batch(model, layers, _as_input(x[:1], place), budget)
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            inputs = _as_input(x[rows], place).requires_grad_()  # else no output of the first layer has a gradient
            with _tapped(layers, rows, visit):
                # float64: where the model is sure, 1 - p is lost in float32, and with it the gradient's direction.
                loss = losses(model(inputs).double(), rows).sum()
                torch.autograd.grad(loss, inputs)
            on_rows(len(inputs))


def _as_input(x: Tensor, place: Tensor) -> Tensor:
    """Float of the model's dtype, on its device."""
    moved = x.detach().to(place.device)
    return moved.to(place.dtype).div_(255) if x.dtype == torch.uint8 else moved.to(place.dtype)


@contextmanager
def _tapped(layers: dict[str, nn.Module], rows: slice, visit: Visit) -> Iterator[None]:
    """Inside, a forward and a backward pass of `rows` show `visit` every layer; what a layer held is freed at once."""
    met: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, version = inputs[0].detach(), inputs[0]._version
            if name in met or len(x) != rows.stop - rows.start:
                raise StageError(f"layer {name!r}: must be used once per image; influence can't be traced through it")
            met.add(name)

            # A hook on the tensor sees the gradient before an in-place ReLU that follows; the tensor itself would not.
            def backward(gradient: Tensor) -> None:
                if x._version != version:
                    raise StageError(f"layer {name!r}: its input is changed in place later; use a copy there")
                visit(name, rows, inputs_of(layer, x), output_gradients_of(layer, gradient))

            output.register_hook(backward)

        return forward

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows_per_batch(model: nn.Module, layers: dict[str, nn.Module], one: Tensor, batch_bytes: int) -> int:
    """Rows whose kept activations, and one layer's a, g and gradients (twice: rotated), fit into `batch_bytes`."""
    kept, busiest = 0, 0

    def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal kept, busiest
        a, g = inputs_of(layer, inputs[0]), output_gradients_of(layer, output)
        kept += 3 * (inputs[0].numel() + output.numel())  # 3: what the layers in between keep (normalisation, ReLU)
        busiest = max(busiest, 2 * (a.numel() + g.numel() + a.shape[2] * g.shape[2]))

    handles = [layer.register_forward_hook(forward) for layer in layers.values()]
    try:
        with torch.no_grad():
            model(one)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, batch_bytes // ((kept + busiest) * one.element_size()))


# ---------------------------------------------------------------------------------------------------------------------
# The factors
# ---------------------------------------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    x: Tensor,
    losses: Losses,
    *,
    batch_bytes: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> dict[str, Factors]:
    """Layer name to its factors, from the rows x (N, ...); two passes over them.

    losses: `sampled_cross_entropy` for the true Fisher, `cross_entropy` for the empirical one.
    """
    A: dict[str, Tensor] = {}
    S: dict[str, Tensor] = {}

    def add_moments(name: str, rows: slice, a: Tensor, g: Tensor) -> None:
        A[name] = A.get(name, 0) + _moment(a)
        S[name] = S.get(name, 0) + _moment(g)

    visit_rows(model, x, losses, add_moments, batch_bytes=batch_bytes, on_rows=on_rows)
    dtype = next(model.parameters()).dtype
    factors: dict[str, Factors] = {}
    for name, moment in A.items():
        Q_A, Q_S = eigenvectors(moment, name), eigenvectors(S[name], name)
        Lambda = Q_A.new_zeros(len(Q_S), len(Q_A))
        factors[name] = Factors(Q_A.to(dtype), Q_S.to(dtype), Lambda)

    def add_squares(name: str, rows: slice, a: Tensor, g: Tensor) -> None:
        factors[name].Lambda.add_(rotated(a, g, factors[name]).square().sum(0) / len(x))

    visit_rows(model, x, losses, add_squares, batch_bytes=batch_bytes, on_rows=on_rows)
    return {name: Factors(f.Q_A, f.Q_S, f.Lambda.to(dtype)) for name, f in factors.items()}


def _moment(v: Tensor) -> Tensor:
    """Σ v vᵀ over rows and places: (B, T, d) -> (d, d) float64, so that sums over many batches keep their digits."""
    flat = v.flatten(0, 1)
    return (flat.T @ flat).double()
