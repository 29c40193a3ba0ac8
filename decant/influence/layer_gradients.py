"""A layer's inputs, output gradients and per-row weight gradients, for a batch of rows.

A layer maps inputs a_t to outputs s_t = [W | b] a_t, at one or several positions t of a row. The gradient of a row's
loss by the layer's weights follows from the inputs and from the loss's gradients at the outputs:

    g_t = ∂L / ∂s_t            G = Σ_t g_t a_tᵀ

Symbols:  b  rows of a batch            o  outputs of the layer        d  inputs, plus 1 where the layer has a bias
          t  positions at which a row is mapped: 1 for a Linear on vectors, the output's pixels for a Conv2d
          c  blocks: a layer that is several independent blocks has this dimension, other layers don't
          a (b, t, d), g (b, t, o), G (b, o, d);  with blocks (b, c, t, d), (b, c, t, o), (b, c, o, d)

Blocks are the groups of a grouped convolution (o and d are those of one group) and the channels of a normalisation,
whose weights are [scale | shift] (o = 1, d = 2, or 1 without a shift).

Linear and Conv2d of any kind, and the scale and shift of normalisation layers.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class LayerBatch:
    """One layer's input for a batch of rows, and the gradient of each row's loss at its output."""

    layer: nn.Module
    x: Float[Tensor, "b ..."]
    """The input, as the layer was given it."""
    output_gradient: Float[Tensor, "b ..."]
    """In the shape of the layer's output."""

    @property
    def a(self) -> Float[Tensor, "b *c t d"]:
        """The layer's inputs; of a convolution, patches, k² times as large as x: ask for them only to multiply them."""
        return inputs_of(self.layer, self.x)

    @cached_property
    def g(self) -> Float[Tensor, "b *c t o"]:
        """The gradients at the layer's outputs."""
        return output_gradients_of(self.layer, self.output_gradient)

    def gradients(self, g: Float[Tensor, "b *c t p"] | None = None) -> Float[Tensor, "b *c p d"]:
        """G = Σ_t g_t a_tᵀ of every row; for other g, such as rotated ones, where given.

        On a CPU those of a convolution are one grouped convolution, with a group per row: three times as fast there as
        the product with its patches.
        """
        g = self.g if g is None else g
        if isinstance(self.layer, nn.Conv2d) and self.x.device.type == "cpu":
            return _convolution_gradients(self.layer, self.x, g, self.output_gradient.shape[2:])
        return g.mT @ self.a

    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.x.nbytes + self.output_gradient.nbytes


def inputs_of(layer: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b *c t d"]:
    """a of the layer's input: patches of a Conv2d, positions of a Linear; a 1 is appended for the bias."""
    if isinstance(layer, NORMALISATION):
        a = _by_channel(layer, _normalised(layer, x))[..., None]
    elif isinstance(layer, nn.Conv2d):
        patches = F.unfold(_padded(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)  # (b, d, t)
        a = (patches if layer.groups == 1 else patches.unflatten(1, (layer.groups, -1))).mT
    else:
        a = x.reshape(len(x), -1, x.shape[-1])
    return a if getattr(layer, "bias", None) is None else F.pad(a, (0, 1), value=1.0)


def output_gradients_of(layer: nn.Module, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b *c t o"]:
    """g of the gradient at the layer's output, its positions in the same order as in `inputs_of`."""
    if isinstance(layer, NORMALISATION):
        return _by_channel(layer, gradient)[..., None]
    if isinstance(layer, nn.Conv2d):
        flat = gradient.flatten(2)
        return (flat if layer.groups == 1 else flat.unflatten(1, (layer.groups, -1))).mT
    return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def second_moment(v: Float[Tensor, "b *c t d"]) -> Float[Tensor, "*c d d"]:
    """Σ v vᵀ over rows and positions, block by block."""
    flat = v.flatten(0, 1) if v.ndim == 3 else v.transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def input_moment(layer: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "*c d d"]:
    """A = Σ a aᵀ over rows and positions: `second_moment(inputs_of(layer, x))`, without patches at stride 1.

    Let R_r be row r of the padded pictures, cut into windows as wide as the kernel. The patch whose top is at row p
    consists of the windows R_p, ..., R_{p+k-1} below one another, k being the kernel's height. With T rows of patches
    the block of A that belongs to the kernel's rows i and j is

        A_ij = Σ_{p=0}^{T-1} R_{p+i}ᵀ R_{p+j}

    The block one further down the diagonal sums the same products from p = 1 to T, so that it differs in two of them:

        A_{i+1,j+1} = A_ij - R_iᵀ R_j + R_{i+T}ᵀ R_{j+T}

    Only the k blocks A_0j are multiplied out in full, which is three (k = 3) to five (k = 5) times as fast as the
    product of patches. For the bias a channel of ones is appended to x: its entry in A for the kernel's first position
    stands after those of all other channels, where the bias belongs, and the rest of it is cut off.
    """
    if not isinstance(layer, nn.Conv2d) or (layer.groups, *layer.stride, *layer.dilation) != (1, 1, 1, 1, 1):
        return second_moment(inputs_of(layer, x))
    padded = _padded(layer, x)
    if layer.bias is not None:
        padded = F.pad(padded, (0, 0, 0, 0, 0, 1), value=1.0)
    channels, (k, width) = padded.shape[1], layer.kernel_size
    R = padded.unfold(3, width, 1).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (rows, b windows, channels width)
    T = len(R) - k + 1
    A = R.new_empty(channels, k, width, channels, k, width)
    for j in range(k):
        block = R[:T].flatten(0, 1).T @ R[j : j + T].flatten(0, 1)
        for i in range(k - j):  # from A_0j down its diagonal
            A[:, i, :, :, i + j] = block.view(channels, width, channels, width)
            A[:, i + j, :, :, i] = block.T.view(channels, width, channels, width)
            if i + j + 1 < k:
                block = block - R[i].T @ R[i + j] + R[i + T].T @ R[i + j + T]
    d = layer.weight[0].numel() + (layer.bias is not None)
    return A.view(channels * k * width, -1)[:d, :d]


def _convolution_gradients(
    layer: nn.Conv2d, x: Float[Tensor, "b i h w"], g: Float[Tensor, "b *c t p"], positions: torch.Size
) -> Float[Tensor, "b *c p d"]:
    """G of a convolution: the weight gradient of one convolution whose groups are the rows times the layer's groups."""
    padded, (rows, outputs) = _padded(layer, x), (len(x), g[0, ..., 0, :].numel())
    G = conv2d_weight(
        padded.reshape(1, -1, *padded.shape[2:]),
        [rows * outputs, x.shape[1] // layer.groups, *layer.kernel_size],
        g.mT.reshape(1, rows * outputs, *positions),
        layer.stride,
        0,
        layer.dilation,
        rows * layer.groups,
    ).reshape(*g.shape[:-2], g.shape[-1], -1)
    return G if layer.bias is None else torch.cat([G, g.sum(-2)[..., None]], -1)


def _padded(layer: nn.Conv2d, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b i height width"]:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode) if any(layer._reversed_padding_repeated_twice) else x


def _normalised(layer: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """x̂: the layer's output is scale · x̂ + shift."""
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


def _by_channel(layer: nn.Module, v: Float[Tensor, "b ..."]) -> Float[Tensor, "b c t"]:
    """Channels are the second dimension, or for LayerNorm and RMSNorm all that share one statistic."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return v.reshape(len(v), -1, layer.weight.numel()).mT
    return v.reshape(len(v), v.shape[1], -1)
