"""The packed twins of one committed layer, on bits or with binary weights on floats, or of one committed product."""

from __future__ import annotations

import torch

from stompp_kernels.nn import (
    BinaryConv2d,
    BinaryLayer,
    BinaryMatmul,
    BinaryWeightConv2d,
    BinaryWeightLayer,
    BinaryWeightLinear,
    PackedConv2d,
    PackedLinear,
    PackedMatmul,
)
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns, Threshold, pack_binary_weight


def is_packable(layer: BinaryLayer) -> bool:
    """Whether a layer's weights and inputs are all +-1."""
    return layer.committed and layer.input_is_binary


def has_binary_weight(layer: BinaryLayer) -> bool:
    """Whether a layer's weights are +-1 and its inputs floats, which no activation of its own has still to clip."""
    pads_zeros = not isinstance(layer, BinaryConv2d) or layer.padding_value == 0
    return layer.committed and not layer.input_is_binary and layer.input_activation is None and pads_zeros


def own_affine(layer: BinaryLayer) -> Affine:
    """The layer's own scales and bias as an epilogue."""
    N, device = layer.weight.shape[0], layer.weight.device
    own = layer.output_scale()
    one, zero = (torch.full((N,), value, dtype=torch.float32, device=device) for value in (1.0, 0.0))
    scale = one if own is None else own.detach().float().expand(N).contiguous()
    bias = zero if layer.bias is None else layer.bias.detach().float().clone()
    return Affine(scale, bias)


def packed_twin(
    layer: BinaryLayer, epilogue: Affine | AffineSigns | Threshold, replaces: tuple[str, ...]
) -> PackedLayer:
    """Its weights as bits, and the epilogue after them."""
    weight = layer.packed_weight()
    if isinstance(layer, BinaryConv2d):
        stride, padding, dilation, _, padding_value = layer.geometry
        return PackedConv2d(weight, epilogue, stride, padding, dilation, padding_value, replaces)
    return PackedLinear(weight, epilogue, replaces)


def binary_weight_twin(layer: BinaryLayer, affine: Affine, replaces: tuple[str, ...]) -> BinaryWeightLayer:
    """Its weights as bits, for float inputs, and what follows the sums."""
    if isinstance(layer, BinaryConv2d):
        weight = pack_binary_weight(layer.latent().detach(), layer.groups)
        return BinaryWeightConv2d(weight, affine.scale, affine.bias, *layer.geometry[:3], replaces)
    return BinaryWeightLinear(pack_binary_weight(layer.latent().detach()), affine.scale, affine.bias, replaces)


def matmul_twin(product: BinaryMatmul, name: str) -> PackedMatmul:
    """The product of the signs of two activations."""
    return PackedMatmul(product.zero_one, (name,))
