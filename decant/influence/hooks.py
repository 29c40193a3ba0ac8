"""Per-row gradients of every layer, collected by hooks in one forward and one backward pass.

A layer's inputs a and the loss's gradients g at its outputs determine each row's gradient G by the weights
(`decant.influence.layer_gradients`). A hook keeps the input in the forward pass; in the backward pass, as soon as the
gradient at the layer's output is known, it passes both to the caller's `visit`, and they are freed afterwards. No
parameter needs a gradient of its own, which saves a third of the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decant.errors import StageError
from decant.influence.layer_gradients import NORMALISATION, LayerBatch, inputs_of, output_gradients_of

Rows = slice | Int[Tensor, " b"]
"""Which of the n rows a batch holds: a slice, or their indices."""

Losses = Callable[[Float[Tensor, "b classes"], Rows], Float[Tensor, " b"]]
"""losses(logits in float64, rows): each row's own loss."""

Visit = Callable[[str, Rows, LayerBatch], None]
"""visit(name of a layer, rows, layer batch), called once per layer and batch."""

BUDGET = 4 * 2**30  # bytes, where `memory` is not given
GPU_BUDGET, GPU_SHARE = 16 * 2**30, 0.8  # the same on a GPU: at most so much, and that share of what is free
BATCH_LIMIT = {"cpu": 128 * 2**20}  # bytes: a CPU gains nothing from batches that leave its cache


def budget_of(model: nn.Module, memory: int | None) -> int:
    """Bytes that tensors beside the model, the factors and the scores may take."""
    if memory is not None:
        return memory
    device = next(model.parameters()).device
    if device.type != "cuda":
        return BUDGET
    return min(GPU_BUDGET, int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]))


def layers_of(model: nn.Module, *, normalisation: bool = False) -> dict[str, nn.Module]:
    """The layers that influence is traced through, by name.

    `normalisation`: the scale and shift of normalisation layers count too; else they are held fixed.
    Raises: StageError for another layer with parameters, and for a batch normalisation without running statistics.
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


class Recording:
    """The first batches of a pass, as many as fit `budget` bytes, for a second pass over the same rows."""

    def __init__(self, budget: int):
        self._budget = budget
        self._whole: list[tuple[int, list[tuple[str, Rows, LayerBatch]]]] = []  # rows, and all layers of a batch
        self._current: list[tuple[str, Rows, LayerBatch]] = []

    def add(self, name: str, rows: Rows, batch: LayerBatch) -> None:
        """Records one layer of the current batch; nothing more once one did not fit."""
        self._budget -= batch.nbytes()
        if self._budget >= 0:
            self._current.append((name, rows, batch))
        else:
            self._current.clear()

    def end_batch(self, count: int) -> None:
        """All layers of the current batch, of `count` rows, have been seen."""
        if self._budget >= 0:
            self._whole.append((count, self._current))
        self._current = []

    def replay(self, visit: Visit, on_rows: Callable[[int], None]) -> int:
        """Shows what was recorded, once, and frees it. Returns how many rows that were."""
        done = 0
        while self._whole:
            count, layers = self._whole.pop(0)
            while layers:
                visit(*layers.pop(0))
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
    chosen: Int[Tensor, " m"] | None = None,
    record: Recording | None = None,
    replay: Recording | None = None,
    low_precision: bool = False,
    memory: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Back-propagates every row's loss, and calls `visit` with each layer's inputs and output gradients.

    x: (n, ...) float, or uint8, which is read as [0, 1]; on any device. `layers`: those to visit (default: all);
    `chosen`: indices of the rows to visit (default: all). `record`: where this pass is recorded; `replay`: the
    recording of an earlier pass, whose rows are not computed again. `low_precision`: the passes run in bfloat16, and
    products of what they yield in float32, of TF32 factors where the device has that. `memory` bounds the bytes of a
    batch; `on_rows` is called with the number of rows done.
    Raises: StageError where influence can't be traced through a layer.
    """
    visited = layers_of(model) if layers is None else layers
    count = len(x) if chosen is None else len(chosen)

    def visit_and_record(name: str, rows: Rows, batch: LayerBatch) -> None:
        visit(name, rows, batch)
        if record:
            record.add(name, rows, batch)

    with _frozen(model), _tf32(low_precision):
        weights = next(model.parameters())
        budget = min(budget_of(model, memory), BATCH_LIMIT.get(weights.device.type, 2**62))
        size = _rows_per_batch(model, visited, _as_input(x[:1], weights), budget)
        for start in range(replay.replay(visit, on_rows) if replay else 0, count, size):
            part = slice(start, min(start + size, count))
            rows = part if chosen is None else chosen[part]
            inputs = _as_input(x[rows], weights)
            with _visited(visited, rows, len(inputs), visit_and_record, low_precision) as roots:
                with torch.autocast(weights.device.type, torch.bfloat16, enabled=low_precision):
                    logits = model(inputs)
                # float64: where the model is sure, 1 - p is lost in float32, and with it the gradient's direction.
                torch.autograd.grad(losses(logits.double(), rows).sum(), roots)
            if record:
                record.end_batch(len(inputs))
            on_rows(len(inputs))


def _as_input(x: Tensor, weights: Tensor) -> Tensor:
    """x as a float of the weights' kind, on their device."""
    moved = x.detach().to(weights.device)
    return moved.to(weights.dtype).div_(255) if x.dtype == torch.uint8 else moved.to(weights.dtype)


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
def _forward_hooks(
    layers: dict[str, nn.Module], hook: Callable[[str, nn.Module, Tensor, Tensor], Any]
) -> Iterator[None]:
    """Inside, `hook(name, layer, input, output)` is called in the forward pass; what it returns replaces the output."""
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: hook(name, layer, inputs[0], output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _visited(
    layers: dict[str, nn.Module], rows: Rows, count: int, visit: Visit, low_precision: bool
) -> Iterator[list[Tensor]]:
    """Inside, a forward and a backward pass of `rows`, `count` of them, call `visit` once for every layer.

    Yields the outputs that the backward pass has to reach: those of the first layers. Nothing before them needs a
    gradient.
    """
    seen: set[str] = set()
    roots: list[Tensor] = []

    def rounded(v: Tensor, dtype: torch.dtype) -> Tensor:
        return v.bfloat16().to(dtype) if low_precision else v

    def forward(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        if name in seen or len(x) != count:
            raise StageError(f"layer {name!r}: must be used once per row; influence can't be traced through it")
        seen.add(name)
        version, dtype = x._version, next(layer.parameters()).dtype
        x = x.detach()

        # A hook on the tensor sees the gradient before an in-place ReLU that follows; the tensor itself would not.
        def backward(gradient: Tensor) -> None:
            if x._version != version:
                raise StageError(f"layer {name!r}: its input is changed in place later; use a copy there")
            visit(name, rows, LayerBatch(layer, rounded(x, dtype), rounded(gradient, dtype)))

        is_root = not output.requires_grad
        if is_root:
            roots.append(output.requires_grad_())
        output.register_hook(backward)
        return output.clone() if is_root else output  # an in-place ReLU may follow, which a leaf does not allow

    with _forward_hooks(layers, forward):
        yield roots


def _rows_per_batch(model: nn.Module, layers: dict[str, nn.Module], one: Tensor, budget: int) -> int:
    """Rows whose kept activations, and one layer's a, g and gradients (twice: rotated), fit into `budget` bytes."""
    kept, busiest = 0, 0

    def count(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        nonlocal kept, busiest
        a, g = inputs_of(layer, x), output_gradients_of(layer, output)
        kept += 3 * (x.numel() + output.numel())  # 3: what the layers in between keep (normalisation, ReLU)
        G = a.shape[-1] * g.numel() // g.shape[-2]
        busiest = max(busiest, 2 * (a.numel() + g.numel() + G))

    with _forward_hooks(layers, count), torch.no_grad():
        model(one)
    return max(1, budget // ((kept + busiest) * one.element_size()))
