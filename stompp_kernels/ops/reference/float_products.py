"""Products of floats: with binary weights, and with float weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.ops.reference.bits import pack_outside, pack_weight_words, unpack_signs, unpack_weight_words
from stompp_kernels.ops.reference.epilogues import multiply_add

FLOAT_PANEL = 32  # outputs of a panel of float weights
BFLOAT16_STEP = 32  # inputs that a step multiplies


def pack_binary_weight_words(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return pack_weight_words(words, shape, groups)


def unpack_binary_weight_words(weight: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return unpack_weight_words(weight, shape, groups)


def _signs_of(weight: Tensor, shape: Sequence[int]) -> Tensor:
    return unpack_signs(unpack_weight_words(weight, shape, 1), shape[1], torch.float32)


def _scaled(sums: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = sums * scale
    return (y if bias is None else y + bias).to(dtype)


def linear_binary_weight(x: Tensor, weight: Tensor, N: int, K: int, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Computes in float32. A kernel may add in another order."""
    return _scaled(x.to(torch.float32) @ _signs_of(weight, (N, K)).T, scale, bias, x.dtype)


def conv2d_binary_weight(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Computes in float32. A kernel may add in another order."""
    w = _signs_of(weight, weight_shape).permute(0, 3, 1, 2)
    sums = F.conv2d(x.to(torch.float32), w, None, tuple(stride), tuple(padding), tuple(dilation), groups)
    y = _scaled(sums.permute(0, 2, 3, 1), scale, bias, x.dtype)
    return y.contiguous().permute(0, 3, 1, 2)


def bfloat16_parts(w: Tensor, parts: int) -> Tensor:
    """Returns bfloat16 [parts, ...] whose sums over the parts are ``w`` as nearly as they can be."""
    found, rest = [], w
    for _ in range(parts):
        found.append(rest.to(torch.bfloat16))
        rest = rest - found[-1].to(w.dtype)
    return torch.stack(found)


def round_float_panels(weight: Tensor, parts: int) -> Tensor:
    """Turns panels [P, K, 32] into bfloat16 [P, ceil(K/32), parts, 16, 32, 2], with zeros behind the last input."""
    P, K, _ = weight.shape
    rounded = bfloat16_parts(F.pad(weight, (0, 0, 0, -K % BFLOAT16_STEP)), parts)
    steps = rounded.reshape(parts, P, -1, BFLOAT16_STEP // 2, 2, FLOAT_PANEL)
    return steps.permute(1, 2, 0, 3, 5, 4).contiguous()


def unpack_float_weight(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpacks panels [ceil(O/32), kh * kw * I, 32], or those of :func:`round_float_panels`, into [O, I, kh, kw]."""
    O, I, kh, kw = shape
    if weight.dtype is torch.bfloat16:
        steps = weight.to(torch.float32).sum(2).permute(0, 1, 2, 4, 3)
        weight = steps.reshape(steps.shape[0], -1, FLOAT_PANEL)[:, : kh * kw * I]
    return weight.transpose(1, 2).reshape(-1, kh, kw, I)[:O].permute(0, 3, 1, 2)


def conv2d_float(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: Tensor | None,
    bias: Tensor | None,
    fused: bool,
) -> Tensor:
    """Reads x as floats or words, and weights in float panels, or in bfloat16 ones, which it multiplies as floats.

    A kernel may add in another order, and with bfloat16 weights round x to bfloat16 too.
    """
    if x.dtype is torch.int32:
        x = unpack_signs(x, weight_shape[1], torch.float32).permute(0, 3, 1, 2)
    w = unpack_float_weight(weight, weight_shape)
    y = F.conv2d(x, w, None, tuple(stride), tuple(padding), tuple(dilation)).permute(0, 2, 3, 1)
    if scale is not None and bias is not None:
        y = multiply_add(y, scale, bias, fused)
    return y.contiguous().permute(0, 3, 1, 2)


def conv2d_float_signs(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    low: Tensor,
    high: Tensor,
) -> Tensor:
    y = conv2d_float(x, weight, weight_shape, stride, padding, dilation, None, None, False)
    return pack_outside(y.permute(0, 2, 3, 1), low, high)
