"""What becomes of a product's int32 accumulator."""

from __future__ import annotations

import torch
from torch import Tensor

from stompp_kernels.ops.reference.bits import bits_from_words, pack_bits, pack_outside, pack_signs


def fused_multiply_add(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Computes x * scale + bias of float32 tensors, rounded once."""
    product = x.double() * scale.double()  # exact: 24 + 24 bits
    total = product + bias.double()
    part = total - product
    lost = (product - (total - part)) + (bias.double() - part)  # Knuth's TwoSum
    # Rounded to odd where the sum is not exact, so that rounding it again is as if it had been rounded once.
    even = total.view(torch.int64) & 1 == 0
    odd = torch.nextafter(total, torch.where(lost > 0, torch.inf, -torch.inf).to(torch.float64))
    return torch.where(even & (lost != 0) & total.isfinite(), odd, total).float()


def multiply_add(x: Tensor, scale: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """Computes x * scale + bias per last dimension, in float32, each operation rounded on its own or fused."""
    x = x.to(torch.float32)
    return fused_multiply_add(x, scale, bias) if fused else x * scale + bias


def apply_rprelu(y: Tensor, rprelu: Tensor) -> Tensor:
    """Computes ReActNet's RPReLU per last dimension: a shift, a PReLU and another shift, the rows of [3, N]."""
    before, slope, after = rprelu.unbind()
    y = y + before
    return torch.where(y > 0, y, y * slope) + after


def affine(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    dtype: torch.dtype,
    rprelu: Tensor | None = None,
) -> Tensor:
    """Computes scale * acc + bias (+ residual) per last dimension, in float32, and the RPReLU of that.

    A residual with a scale and a bias of its own is residual_scale * residual + residual_bias.
    """
    y = multiply_add(acc, scale, bias, fused)
    if residual is not None:
        residual = residual.to(torch.float32)
        if residual_scale is not None and residual_bias is not None:
            residual = multiply_add(residual, residual_scale, residual_bias, fused)
        y = y + residual
    return (y if rprelu is None else apply_rprelu(y, rprelu)).to(dtype)


def affine_signs(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    floats: bool,
    rprelu: Tensor | None = None,
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what :func:`affine` gives in float32, empty unless ``floats``, and its signs, by ``limits`` if given."""
    y = affine(acc, scale, bias, residual, residual_scale, residual_bias, fused, torch.float32, rprelu)
    words = pack_signs(y) if limits is None else pack_outside(y, *limits)
    return y if floats else y.new_empty(0), words


def threshold(acc: Tensor, thresholds: Tensor, flip_words: Tensor, residual_words: Tensor | None) -> Tensor:
    """Packs (acc < threshold) ^ flip, by the second row of thresholds where the residual's bit is set."""
    N = acc.shape[-1]
    chosen = thresholds[0]
    if residual_words is not None:
        chosen = torch.where(bits_from_words(residual_words, N), thresholds[1], thresholds[0])
    return pack_bits((acc < chosen) ^ bits_from_words(flip_words, N))
