"""The packed twin of one committed layer."""

from __future__ import annotations

import torch

from stompp_kernels.nn import BinaryConv2d, BinaryLayer, PackedConv2d, PackedLinear
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns, Threshold


def is_packable(layer: BinaryLayer) -> bool:
    """Whether a layer's weights and inputs are all +-1."""
    return layer.committed and layer.input_is_binary


def own_affine(layer: BinaryLayer) -> Affine:
    """The layer's own scales and bias as an epilogue."""
    N, device = layer.weight.shape[0], layer.weight.device
    own = layer.output_scale()
    scale = torch.ones(N, device=device) if own is None else own.detach().float().expand(N).contiguous()
    bias = torch.zeros(N, device=device) if layer.bias is None else layer.bias.detach().float().clone()
    return Affine(scale, bias)


def packed_twin(
    layer: BinaryLayer, epilogue: Affine | AffineSigns | Threshold, replaces: tuple[str, ...]
) -> PackedLayer:
    """Its weights as bits, and the epilogue after them."""
    weight = layer.packed_weight()
    if isinstance(layer, BinaryConv2d):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.padding_value)
        return PackedConv2d(weight, epilogue, *geometry, replaces)
    return PackedLinear(weight, epilogue, replaces)
