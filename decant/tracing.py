"""Each row's gradients, layer by layer, from one backward pass: what EK-FAC and influence are computed from.

A layer that maps inputs a_t to outputs s_t = [W | b] a_t has, for the loss of one row, the gradient G = Σ_t g_t a_tᵀ,
where g_t is the loss's gradient at s_t. So a and g are enough, and hooks collect them in a `Trace`: a in the forward
pass, g in the backward pass, and G is formed from them before the next layer's turn. Parameters need no gradient of
their own, which saves a third of the backward pass.

Shapes:  B rows of a batch   O outputs of the layer   D inputs, plus 1 where it has a bias
         T places where the layer meets a row: 1 for a Linear on vectors, the output's pixels for a Conv2d
         a (B, T, D) inputs, g (B, T, O) gradients at the outputs; (B, C, T, D) and (B, C, T, O) for C blocks

A layer that is several independent blocks has a dimension of blocks: a grouped convolution one per group (O and D are
those of a group), a normalisation one per channel, whose weights are [scale | shift] (O = 1, D = 2 or 1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from decant.errors import StageError

Rows = slice | Tensor
"""Which of the N rows a batch holds: a slice, or their indices (B,) int64."""

Losses = Callable[[Tensor, Rows], Tensor]
"""losses(logits (B, K) float64, rows) -> (B,): each row's own loss."""

Visit = Callable[[str, Rows, "Trace"], None]
"""visit(name of a layer, rows, trace), called once per layer and batch."""

BUDGET = {"cpu": 4 * 2**30, "cuda": 16 * 2**30}  # bytes, where `memory` is not given
BATCH_LIMIT = {"cpu": 128 * 2**20}  # bytes: a CPU gains nothing from batches that leave its cache

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def budget_of(model: nn.Module, memory: int | None) -> int:
    """Bytes that tensors beside the model, the factors and the scores may take."""
    return memory or BUDGET.get(next(model.parameters()).device.type, BUDGET["cpu"])


# ---------------------------------------------------------------------------------------------------------------------
# One layer
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What one layer met in the rows of a batch: its input x, and the loss's gradient at its output."""

    layer: nn.Module
    x: Tensor  # as the layer was given it
    output_gradient: Tensor  # as the layer's output

    @property
    def a(self) -> Tensor:
        """(B, T, D). Patches of a convolution, so ask for them only where they are multiplied as they are."""
        return inputs_of(self.layer, self.x)

    @cached_property
    def g(self) -> Tensor:
        """(B, T, O)."""
        return output_gradients_of(self.layer, self.output_gradient)

    def gradients(self, g: Tensor | None = None) -> Tensor:
        """G_i = Σ_t g_it a_itᵀ (B, O, D), for other g (B, T, any) where given.

        On a CPU those of a convolution are one convolution too, with a group per row: three times as fast there as the
        product with its patches.
        """
        g = self.g if g is None else g
        if isinstance(self.layer, nn.Conv2d) and self.x.device.type == "cpu":
            return _row_kernels(self.layer, self.x, g, self.output_gradient.shape[2:])
        return g.mT @ self.a

    def input_moment(self) -> Tensor:
        """Σ a aᵀ over rows and places (D, D)."""
        return input_moment(self.layer, self.x)

    def nbytes(self) -> int:
        return self.x.nbytes + self.output_gradient.nbytes


def _row_kernels(layer: nn.Conv2d, x: Tensor, g: Tensor, places: torch.Size) -> Tensor:
    """G of a convolution, as the weight gradient of one whose groups are the rows (each with the layer's groups)."""
    padded, (rows, outputs) = _padded(layer, x), (len(x), g[0, ..., 0, :].numel())
    G = conv2d_weight(
        padded.reshape(1, -1, *padded.shape[2:]),
        [rows * outputs, x.shape[1] // layer.groups, *layer.kernel_size],
        g.mT.reshape(1, rows * outputs, *places),
        layer.stride,
        0,
        layer.dilation,
        rows * layer.groups,
    ).reshape(*g.shape[:-2], g.shape[-1], -1)
    return G if layer.bias is None else torch.cat([G, g.sum(-2)[..., None]], -1)


def inputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    """a of the layer's input: patches of a Conv2d, positions of a Linear; a 1 is appended for the bias."""
    if isinstance(layer, NORMALISATION):
        a = _by_channel(layer, _normalised(layer, x))[..., None]
    elif isinstance(layer, nn.Conv2d):
        patches = F.unfold(_padded(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)  # (B, C k k, T)
        a = (patches if layer.groups == 1 else patches.unflatten(1, (layer.groups, -1))).mT
    else:
        a = x.reshape(len(x), -1, x.shape[-1])
    return a if getattr(layer, "bias", None) is None else F.pad(a, (0, 1), value=1.0)


def output_gradients_of(layer: nn.Module, gradient: Tensor) -> Tensor:
    """g of the gradient at the layer's output, its places in the same order as in `inputs_of`."""
    if isinstance(layer, NORMALISATION):
        return _by_channel(layer, gradient)[..., None]
    if isinstance(layer, nn.Conv2d):
        flat = gradient.flatten(2)
        return (flat if layer.groups == 1 else flat.unflatten(1, (layer.groups, -1))).mT
    return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def moment(v: Tensor) -> Tensor:
    """Σ v vᵀ over rows and places: (B, T, d) -> (d, d), or block by block: (B, C, T, d) -> (C, d, d)."""
    flat = v.flatten(0, 1) if v.ndim == 3 else v.transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def input_moment(layer: nn.Module, x: Tensor) -> Tensor:
    """`moment(inputs_of(layer, x))`; for a convolution of stride 1 with k times fewer operations, and no patches.

    Cut into bands of k rows, the patches of all places but those at the rim share their bands: the block of A that
    belongs to the kernel's rows i + 1 and j + 1 is the one of i and j, one place further down. So k blocks are
    multiplied out, and the others follow from them by leaving out the first place and adding the last.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return moment(inputs_of(layer, x))
    (height, width), (down, right), (step, across) = layer.kernel_size, layer.dilation, layer.stride
    windows = _padded(layer, x).unfold(3, right * (width - 1) + 1, across)[..., ::right]  # (B, C, H, T_w, k)
    bands = windows.permute(2, 0, 3, 4, 1).flatten(3).flatten(1, 2)  # (H, B T_w, k C): a copy
    places = (len(bands) - down * (height - 1) - 1) // step + 1  # T_h
    last = step * (places - 1)
    strided = [bands[first::step].contiguous() for first in range(step)] if step > 1 else [bands]

    def met(r: int) -> Tensor:
        """The rows r, r + step, ... (T_h B T_w, k C) that a row of the kernel meets."""
        return strided[r % step][r // step : r // step + places].flatten(0, 1)

    blocks: dict[tuple[int, int], Tensor] = {}
    for i in range(height):
        for j in range(i, height):
            top, low = i * down, j * down
            before = (i - step // down, j - step // down)
            if step % down == 0 and before in blocks:
                gone = bands[top - step].T @ bands[low - step]
                blocks[i, j] = blocks[before] - gone + bands[top + last].T @ bands[low + last]
            else:
                blocks[i, j] = met(top).T @ met(low)
    rows = [torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in range(height)], 1) for i in range(height)]
    A = torch.cat(rows)  # its inputs in the order (row, column, channel); `unfold` has (channel, row, column)
    order = torch.arange(len(A), device=A.device).view(height, width, -1).permute(2, 0, 1).flatten()
    if layer.bias is None:
        return A[order][:, order]
    sums = torch.cat([met(i * down).sum(0) for i in range(height)])[order]
    count = sums.new_full((1,), places * bands.shape[1])
    return torch.cat([torch.cat([A[order][:, order], sums[:, None]], 1), torch.cat([sums, count])[None]])


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode) if any(layer._reversed_padding_repeated_twice) else x


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """x̂, of which the layer makes scale · x̂ + shift."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        own = layer.running_mean is None
        return F.instance_norm(x, layer.running_mean, layer.running_var, use_input_stats=own, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    assert isinstance(layer, nn.RMSNorm)
    return F.rms_norm(x, list(layer.normalized_shape), eps=layer.eps)


def _by_channel(layer: nn.Module, v: Tensor) -> Tensor:
    """(B, C, T): channels are the second dimension, or for LayerNorm and RMSNorm all that share one statistic."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return v.reshape(len(v), -1, layer.weight.numel()).mT
    return v.reshape(len(v), v.shape[1], -1)


def layers_of(model: nn.Module, *, normalisation: bool = False) -> dict[str, nn.Module]:
    """The layers that count, by name. Raises StageError for one with parameters that EK-FAC does not know.

    `normalisation`: the scale and shift of normalisation layers count too; else they are held fixed.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise StageError(
                f"layer {name!r}: its statistics are those of a batch, so that no row has its own gradient"
            )
        if next(module.parameters(recurse=False), None) is None:
            continue
        if isinstance(module, nn.Linear | nn.Conv2d) or (normalisation and isinstance(module, NORMALISATION)):
            layers[name] = module
        elif not isinstance(module, NORMALISATION):
            kind = type(module).__name__
            raise StageError(
                f"layer {name!r}: Linear, Conv2d or a normalisation expected, {kind} found; influence can't be traced"
            )
    return layers


# ---------------------------------------------------------------------------------------------------------------------
# All rows
# ---------------------------------------------------------------------------------------------------------------------


class Kept:
    """Traces of a pass's first batches, as many as fit `room` bytes, for another pass over the same rows."""

    def __init__(self, room: int):
        self._room = room
        self._batches: list[tuple[int, list[tuple[str, Rows, Trace]]]] = []

    @contextmanager
    def batch(self, visit: Visit, count: int) -> Iterator[Visit]:
        """Inside, a visit that also keeps a batch of `count` rows; nothing more once one did not fit."""
        traces: list[tuple[str, Rows, Trace]] = []

        def keep(name: str, rows: Rows, trace: Trace) -> None:
            visit(name, rows, trace)
            self._room -= trace.nbytes()
            if self._room >= 0:
                traces.append((name, rows, trace))
            else:
                traces.clear()

        yield keep
        if self._room >= 0:
            self._batches.append((count, traces))

    def replay(self, visit: Visit, on_rows: Callable[[int], None]) -> int:
        """Shows what is kept, once. Returns how many rows that were."""
        done = 0
        while self._batches:
            count, traces = self._batches.pop(0)
            while traces:
                visit(*traces.pop(0))
            on_rows(count)
            done += count
        return done


def visit_rows(
    model: nn.Module,
    x: Tensor,
    losses: Losses,
    visit: Visit,
    *,
    layers: dict[str, nn.Module] | None = None,
    chosen: Tensor | None = None,
    keep: Kept | None = None,
    kept: Kept | None = None,
    low_precision: bool = False,
    memory: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Back-propagates every row's loss, and shows `visit` each layer's trace, batch after batch.

    x: (N, ...) float, or uint8, which is read as [0, 1]; on any device. `layers`: those to show (default: all);
    `chosen`: indices of the rows to visit (default: all). `keep`, `kept`: where traces are kept for another pass, and
    those of a pass before, which spare this one their rows. `low_precision`: the passes run in bfloat16, and products
    of what they yield in float32, of TF32 factors where the device has that. `memory` bounds the bytes of a batch;
    `on_rows` is told how many rows are done. Raises StageError where a layer can't be traced.
    """
    wanted = layers_of(model) if layers is None else layers
    count = len(x) if chosen is None else len(chosen)
    with _frozen(model), _tf32(low_precision):
        place = next(model.parameters())
        room = min(budget_of(model, memory), BATCH_LIMIT.get(place.device.type, 2**62))
        size = _rows_per_batch(model, wanted, _as_input(x[:1], place), room)
        for start in range(kept.replay(visit, on_rows) if kept else 0, count, size):
            part = slice(start, min(start + size, count))
            rows = part if chosen is None else chosen[part]
            batch = _as_input(x[rows], place)
            keeping = keep.batch(visit, len(batch)) if keep else nullcontext(visit)
            with keeping as shown, _tapped(wanted, rows, shown, low_precision) as roots:
                with torch.autocast(place.device.type, torch.bfloat16, enabled=low_precision):
                    logits = model(batch)
                # float64: where the model is sure, 1 - p is lost in float32, and with it the gradient's direction.
                torch.autograd.grad(losses(logits.double(), rows).sum(), roots)
            on_rows(len(batch))


def _as_input(x: Tensor, place: Tensor) -> Tensor:
    """Float of the model's dtype, on its device."""
    moved = x.detach().to(place.device)
    return moved.to(place.dtype).div_(255) if x.dtype == torch.uint8 else moved.to(place.dtype)


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


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """TF32 holds bfloat16 exactly: products of such values lose nothing, and their sums are float32."""
    before = torch.get_float32_matmul_precision()
    try:
        if allowed:
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _tapped(
    layers: dict[str, nn.Module],
    rows: Rows,
    visit: Visit,
    low_precision: bool,
) -> Iterator[list[Tensor]]:
    """Inside, a forward and a backward pass of `rows` show `visit` every layer; what a layer held is freed at once.

    Yields the outputs that the backward pass has to reach: those of the first layers, before which nothing needs one.
    """
    met: set[str] = set()
    roots: list[Tensor] = []
    count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)

    def rounded(v: Tensor, dtype: torch.dtype) -> Tensor:
        return v.bfloat16().to(dtype) if low_precision else v

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def forward(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x, version, dtype = given[0].detach(), given[0]._version, next(layer.parameters()).dtype
            if name in met or len(x) != count:
                raise StageError(f"layer {name!r}: must be used once per row; influence can't be traced through it")
            met.add(name)

            # A hook on the tensor sees the gradient before an in-place ReLU that follows; the tensor itself would not.
            def backward(gradient: Tensor) -> None:
                if x._version != version:
                    raise StageError(f"layer {name!r}: its input is changed in place later; use a copy there")
                visit(name, rows, Trace(layer, rounded(x, dtype), rounded(gradient, dtype)))

            if output.requires_grad:
                output.register_hook(backward)
                return output
            roots.append(output.requires_grad_())
            output.register_hook(backward)
            return output.clone()  # an in-place ReLU may follow, which a leaf of the graph does not allow

        return forward

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield roots
    finally:
        for handle in handles:
            handle.remove()


def _rows_per_batch(model: nn.Module, layers: dict[str, nn.Module], one: Tensor, room: int) -> int:
    """Rows whose kept activations, and one layer's a, g and gradients (twice: rotated), fit into `room` bytes."""
    kept, busiest = 0, 0

    def forward(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal kept, busiest
        a, g = inputs_of(layer, given[0]), output_gradients_of(layer, output)
        kept += 3 * (given[0].numel() + output.numel())  # 3: what the layers in between keep (normalisation, ReLU)
        G = a.shape[-1] * g.numel() // g.shape[-2]
        busiest = max(busiest, 2 * (a.numel() + g.numel() + G))

    handles = [layer.register_forward_hook(forward) for layer in layers.values()]
    try:
        with torch.no_grad():
            model(one)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, room // ((kept + busiest) * one.element_size()))
