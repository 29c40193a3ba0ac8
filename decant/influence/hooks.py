"""Each row's gradients, layer by layer, from one backward pass: what EK-FAC and influence are computed from.

A layer's inputs a and the loss's gradients g at its outputs are enough to know each row's gradient G by the weights
(`decant.influence.layer_gradients`). Hooks collect them: a in the forward pass, g in the backward pass, and whoever asked forms G before
the next layer's turn. Parameters need no gradient of their own, which saves a third of the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from decant.errors import StageError
from decant.influence.layer_gradients import NORMALISATION, Trace, inputs_of, output_gradients_of

Rows = slice | Tensor
"""Which of the N rows a batch holds: a slice, or their indices (B,) int64."""

Losses = Callable[[Tensor, Rows], Tensor]
"""losses(logits (B, K) float64, rows) -> (B,): each row's own loss."""

Visit = Callable[[str, Rows, Trace], None]
"""visit(name of a layer, rows, trace), called once per layer and batch."""

BUDGET = 4 * 2**30  # bytes, where `memory` is not given
GPU_BUDGET, GPU_SHARE = 16 * 2**30, 0.8  # the same on a GPU: at most so much, and that share of what is free
BATCH_LIMIT = {"cpu": 128 * 2**20}  # bytes: a CPU gains nothing from batches that leave its cache


def budget_of(model: nn.Module, memory: int | None) -> int:
    """Bytes that tensors beside the model, the factors and the scores may take."""
    if memory is not None:
        return memory
    place = next(model.parameters()).device
    if place.type != "cuda":
        return BUDGET
    return min(GPU_BUDGET, int(GPU_SHARE * torch.cuda.mem_get_info(place)[0]))


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
