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
    """A packed binary weight, and what its sums are multiplied with and shifted by.

    Buffers: ``scale`` and ``bias`` float32 [N].

    Args:
        weight: made by :func:`stompp_kernels.ops.pack_binary_weight`.
        scale: float32 [N].
        bias: float32 [N], or None for zeros.
        replaces: names of the modules of the float network whose work it does, in order.
    """

    weight: BinaryWeight

    def __init__(
        self, weight: BinaryWeight, scale: Tensor, bias: Tensor | None = None, replaces: tuple[str, ...] = ()
    ) -> None:
        super().__init__(weight, Affine(scale, torch.zeros_like(scale) if bias is None else bias), replaces)


class BinaryWeightLinear(LinearAttributes, BinaryWeightLayer):
    """Floats [..., K] to floats [..., N] of the same type, see :func:`stompp_kernels.ops.linear_binary_weight`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear_binary_weight(narrowed(x), self.weight, self.scale, self.bias).to(x.dtype)


class BinaryWeightConv2d(Conv2dAttributes, BinaryWeightLayer):
    """Floats [B, C, H, W] to floats [B, O, OH, OW] of the same type, channels_last.

    ``stride``, ``padding`` and ``dilation`` are those of :func:`stompp_kernels.ops.conv2d_binary_weight`.
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
        geometry = self.stride, self.padding, self.dilation, self.weight.groups
        return conv2d_binary_weight(narrowed(x), self.weight, self.scale, self.bias, *geometry).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
