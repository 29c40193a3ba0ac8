"""What one layer met in a batch of rows, and each row's gradient by the layer's weights that follows from it.

A layer maps inputs a_t to outputs s_t = [W | b] a_t. With g_t the gradient of a row's loss at s_t, its gradient by the
weights is G = Σ_t g_t a_tᵀ. Linear and Conv2d of any kind, and the scale and shift of normalisations.

Shapes:  B rows of a batch   O outputs of the layer   D inputs, plus 1 where it has a bias
         T places where the layer meets a row: 1 for a Linear on vectors, the output's pixels for a Conv2d
         a (B, T, D) inputs, g (B, T, O) gradients at the outputs; (B, C, T, D) and (B, C, T, O) for C blocks

A layer that is several independent blocks has a dimension of blocks: a grouped convolution one per group (O and D are
those of a group), a normalisation one per channel, whose weights are [scale | shift] (O = 1, D = 2 or 1).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


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
