"""Launchers of the products of floats with binary weights, in ``torch.ops.stompp_triton``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from stompp_kernels.ops.checks import (
    check_binary_weight_conv2d,
    check_binary_weight_linear,
    check_portable_bytes,
)
from stompp_kernels.ops.geometry import Geometry, conv2d_out_sizes
from stompp_kernels.ops.triton import kernels, launch
from stompp_kernels.ops.triton.wrap import wrap_triton

_binary_weight = kernels.binary_weight


def _product(
    x: Tensor,
    weight: Tensor,
    shape: list[int],
    geometry: Geometry,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Convolves x [batch, H, W, C]; the result is [batch, OH, OW, O]."""
    O, I, kh, kw = shape
    batch, H, W, C = x.shape
    stride, padding, dilation, groups, _ = geometry
    OH, OW = conv2d_out_sizes((H, W), (kh, kw), geometry)
    out = x.new_empty((batch, OH, OW, O))
    if out.numel() == 0:
        return out
    pixels = batch * OH * OW
    size = launch.product(pixels, O // groups)
    tiles = launch.ceil_div(pixels, size.rows), launch.ceil_div(O // groups, size.outputs), groups
    wrap_triton(_binary_weight)[tiles](
        x.contiguous(),
        weight.contiguous().view(torch.int32),
        scale.contiguous(),
        scale if bias is None else bias.contiguous(),
        out,
        pixels,
        C,
        O,
        I,
        O // groups,
        kh * kw,
        kw,
        H,
        W,
        OH,
        OW,
        stride[0],
        stride[1],
        padding[0],
        padding[1],
        dilation[0],
        dilation[1],
        BIAS=bias is not None,
        ROWS=size.rows,
        OUTPUTS=size.outputs,
        num_warps=size.warps,
    )
    return out


@triton_op("stompp_triton::linear_binary_weight", mutates_args={})
def linear_binary_weight(x: Tensor, weight: Tensor, N: int, K: int, scale: Tensor, bias: Tensor | None) -> Tensor:
    check_binary_weight_linear(x, (N, K), scale, bias)
    check_portable_bytes(weight, (N, K))
    geometry = Geometry([1, 1], [0, 0], [1, 1])
    y = _product(x.reshape(-1, 1, 1, K), weight, [N, K, 1, 1], geometry, scale, bias)
    return y.view(*x.shape[:-1], N)


@triton_op("stompp_triton::conv2d_binary_weight", mutates_args={})
def conv2d_binary_weight(
    x: Tensor,
    weight: Tensor,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    geometry = Geometry(stride, padding, dilation, groups)
    check_binary_weight_conv2d(x, weight_shape, geometry, scale, bias)
    check_portable_bytes(weight, weight_shape)
    y = _product(x.permute(0, 2, 3, 1), weight, weight_shape, geometry, scale, bias)
    return y.permute(0, 3, 1, 2)
