"""The inference twins of layers with binary weights and float activations (Binary-Weight-Networks).

Floats in, floats out; only the weight is packed. State dicts hold the portable word order, as those of nn/packed.py do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stompp_kernels.nn.gives_floats import narrowed
from stompp_kernels.nn.packed import Conv2dAttributes, LinearAttributes, PackedLayer
from stompp_kernels.ops import Affine, BinaryWeight, conv2d_binary_weight, linear_binary_weight


class BinaryWeightLayer(PackedLayer):
    """Base of the layers with one-bit weights and float inputs: a packed weight, a scale and a bias for each output.

    Buffers: ``scale`` and ``bias`` float32 [N].

    Args:
        weight: made by :func:`stompp_kernels.ops.pack_binary_weight`.
        scale: float32 [N], which the sums are multiplied by.
        bias: float32 [N], or None for zeros.
        replaces: names of the modules of the float network whose work it does, in order.

    Example:
        >>> weight = sk.ops.pack_binary_weight(torch.randn(8, 64))
        >>> isinstance(sk.nn.BinaryWeightLinear(weight, torch.ones(8)), sk.nn.BinaryWeightLayer)
        True
    """

    weight: BinaryWeight

    def __init__(
        self, weight: BinaryWeight, scale: Tensor, bias: Tensor | None = None, replaces: tuple[str, ...] = ()
    ) -> None:
        super().__init__(weight, Affine(scale, torch.zeros_like(scale) if bias is None else bias), replaces)


class BinaryWeightLinear(LinearAttributes, BinaryWeightLayer):
    """Linear layer with one-bit weights: floats [..., K] to floats [..., N] of the same type.

    The arguments are those of :class:`BinaryWeightLayer`; see :func:`stompp_kernels.ops.linear_binary_weight`.

    Example:
        >>> layer = sk.nn.BinaryWeightLinear(sk.ops.pack_binary_weight(torch.randn(8, 64)), torch.ones(8))
        >>> layer(torch.randn(4, 64)).shape
        torch.Size([4, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies floats by the signs, then scales and shifts; float64 is computed in float32."""
        return linear_binary_weight(narrowed(x), self.weight, self.scale, self.bias).to(x.dtype)


class BinaryWeightConv2d(Conv2dAttributes, BinaryWeightLayer):
    """Convolution with one-bit weights: floats [B, C, H, W] to floats [B, O, OH, OW] of the same type, channels_last.

    Args:
        weight, scale, bias, replaces: as in :class:`BinaryWeightLayer`.
        stride, padding, dilation: as in :func:`stompp_kernels.ops.conv2d_binary_weight`.

    Example:
        >>> weight = sk.ops.pack_binary_weight(torch.randn(16, 8, 3, 3))
        >>> layer = sk.nn.BinaryWeightConv2d(weight, torch.ones(16), padding=(1, 1))
        >>> layer(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    def __init__(
        self,
        weight: BinaryWeight,
        scale: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        replaces: tuple[str, ...] = (),
    ) -> None:
        super().__init__(weight, scale, bias, replaces)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Convolves floats with the signs, then scales and shifts; float64 is computed in float32."""
        geometry = self.stride, self.padding, self.dilation, self.weight.groups
        return conv2d_binary_weight(narrowed(x), self.weight, self.scale, self.bias, *geometry).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
