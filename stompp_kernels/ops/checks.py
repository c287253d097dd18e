"""Argument checks that the ops share: an error names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.ops.geometry import Geometry, conv2d_out_sizes
from stompp_kernels.ops.reference import (
    BFLOAT16_STEP,
    FLOAT_PANEL,
    keeps_strides,
    mask_rows,
    max_pool2d_out_size,
    words_for,
)

SHORT_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*SHORT_FLOATS, torch.float64)
SURROGATES = ("none", "identity", "clip", "approx_sign")


def _differ(a: Any, b: Any) -> bool:
    """Returns whether two sizes differ: False where one is a symbol of a graph, which a comparison would fix."""
    return isinstance(a, int) and isinstance(b, int) and a != b


def _below(a: Any, b: int) -> bool:
    """Returns whether a size is below a bound; False where it is a symbol."""
    return isinstance(a, int) and a < b


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype]) -> None:
    """Checks that a value is a tensor of one of these dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    """Checks a tensor's shape, as far as its sizes are numbers."""
    if value.dim() != len(expected) or any(map(_differ, value.shape, expected)):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(value.shape)}")


def check_module(name: str, value: Any) -> None:
    """Checks that a value is a module."""
    if not isinstance(value, nn.Module):
        hint = "; sk.prepare returns a model and a report" if isinstance(value, tuple) else ""
        raise TypeError(f"{name} must be an nn.Module, got {type(value).__name__}{hint}")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Checks that a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_short_floats(x: Any) -> None:
    """Checks that x can be packed: that it is [..., K] of a type that signs are packed from."""
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() == 0 or _below(x.shape[-1], 1):
        raise ValueError(f"x must have a last dimension of at least 1, got shape {list(x.shape)}")


def check_words(name: str, words: Tensor, K: int) -> None:
    """Checks that ``words`` are int32 rows of K bits."""
    check_tensor(name, words, (torch.int32,))
    if _below(K, 1):
        raise ValueError(f"K must be at least 1, got {K}")
    if words.dim() == 0 or _differ(words.shape[-1], words_for(K)):
        raise ValueError(
            f"{name} must have a last dimension of ceil(K/32) = {words_for(K)} words for K = {K}, "
            f"got shape {list(words.shape)}"
        )


def check_batched_words(a_words: Any, b_words: Any, K: int) -> None:
    """Checks that a_words and b_words are rows of K bits, in batches of the same sizes."""
    for name, words in (("a_words", a_words), ("b_words", b_words)):
        check_words(name, words, K)
        if words.dim() < 2:
            raise ValueError(f"{name} must be [..., rows, ceil(K/32)], got shape {list(words.shape)}")
    if a_words.dim() != b_words.dim() or any(map(_differ, a_words.shape[:-2], b_words.shape[:-2])):
        raise ValueError(
            f"b_words must have the sizes of a_words before their rows, {list(a_words.shape[:-2])}, got shape "
            f"{list(b_words.shape)}"
        )
    if _below(b_words.shape[-2], 1):
        raise ValueError(f"b_words must have at least one row, got shape {list(b_words.shape)}")
    if isinstance(K, int) and K >= 1 << 30:
        raise ValueError(f"K must be below 2^30, got {K}")


def check_limits(x: Any, low: Any, high: Any) -> None:
    """Checks that low and high are limits of x's channels."""
    check_short_floats(x)
    for name, limits in (("low", low), ("high", high)):
        check_tensor(name, limits, (torch.float32,))
        check_shape(name, limits, x.shape[-1:])


def check_progressive(u: Any, mask_words: Any, surrogate: str, batch_shared: bool) -> None:
    """Checks the arguments of the progressive op."""
    check_tensor("u", u, FLOATS)
    check_choice("surrogate", surrogate, SURROGATES)
    if batch_shared and u.dim() == 0:
        raise ValueError("u must have a batch dimension when the mask is shared by the batch, got a scalar")
    if mask_words is not None:
        check_tensor("mask_words", mask_words, (torch.int32,))
        check_shape("mask_words", mask_words, (words_for(mask_rows(u, batch_shared)[1]),))


def check_draw(draw: Any) -> None:
    """Checks the state of a mask that is drawn in the op. On the CPU its values are checked where they are read."""
    check_tensor("draw", draw, (torch.int64,))
    check_shape("draw", draw, (4,))


def check_gradient(grad: Any, u: Tensor) -> None:
    """Checks that grad has u's shape and type."""
    check_tensor("grad", grad, (u.dtype,))
    check_shape("grad", grad, u.shape)


def check_gate(grad: Tensor, gate: Any, strides: Sequence[int], batch_shared: bool) -> None:
    """Checks that the strides are of dense elements of grad's shape, and that the gate has a bit for each."""
    if batch_shared and grad.dim() == 0:
        raise ValueError("grad must have a batch dimension when the mask is shared by the batch, got a scalar")
    known = all(isinstance(size, int) for size in (*grad.shape, *strides))
    if known and grad.numel() > 0 and not keeps_strides(grad.shape, strides, batch_shared):
        raise ValueError(
            "strides must be those of dense elements, the batch outermost where it shares a mask, "
            f"got {list(strides)} for shape {list(grad.shape)}"
        )
    rows, n = mask_rows(grad, batch_shared)
    check_tensor("gate", gate, (torch.int32,))
    check_shape("gate", gate, (rows, words_for(n)))


def check_refresh(mask_words: Any, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
    """Checks the arguments of a mask's refresh."""
    check_tensor("mask_words", mask_words, (torch.int32,))
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    check_shape("mask_words", mask_words, (words_for(n),))
    if not mask_words.is_contiguous():
        raise ValueError(f"mask_words must be contiguous, got strides {mask_words.stride()}")
    check_stream(p, seed, tensor_id, step)
    if not r >= 1.0:
        raise ValueError(f"r must be at least 1, got {r}")


def check_stream(p: float, seed: int, tensor_id: int, step: int) -> None:
    """Checks a probability, and what names the random words of a tensor at a step."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if not 0 <= tensor_id < 1 << 32:
        raise ValueError(f"tensor_id must fit 32 bits, got {tensor_id}")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"seed must be in [-2^63, 2^63), got {seed}")
    if not 0 <= step < 1 << 63:
        raise ValueError(f"step must be in [0, 2^63), got {step}")


def pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    """Returns an int or two ints as two, which is how torch's convolutions take them."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(v, int) for v in both):
        raise ValueError(f"{name} must be an int or two ints, got {value!r}")
    if min(both) < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}")
    return both


def check_conv2d_input(size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> tuple[int, int]:
    """Checks that a kernel fits an input of this height and width, numbers or symbols. Returns the output's."""
    stride, padding, dilation, *rest = geometry
    pairs = Geometry(pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), *rest)
    if _below(size[0], 1) or _below(size[1], 1):
        raise ValueError(f"the input must have at least one row and column of pixels, got {size[0]}x{size[1]}")
    OH, OW = conv2d_out_sizes(size, kernel, pairs)
    if _below(OH, 1) or _below(OW, 1):
        raise ValueError(
            f"the kernel {kernel[0]}x{kernel[1]} with dilation {pairs.dilation} reaches beyond the {size[0]}x{size[1]} "
            f"input padded by {pairs.padding}"
        )
    return OH, OW


def check_per_output(N: int, **values: Any) -> None:
    """Checks that each of these is float32 [N]."""
    for name, value in values.items():
        check_tensor(name, value, (torch.float32,))
        check_shape(name, value, (N,))


def _check_scale_and_bias(N: int, scale: Any, bias: Any) -> None:
    check_per_output(N, scale=scale)
    if bias is not None:
        check_per_output(N, bias=bias)


def check_weight_shape(shape: Sequence[int], groups: int) -> None:
    """Checks that a weight of this shape can be packed."""
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(f"a weight must be [N, K] or [O, I/groups, kh, kw] and not empty, got {list(shape)}")
    if not isinstance(groups, int) or groups < 1 or shape[0] % groups != 0:
        raise ValueError(f"groups must be a positive divisor of the {shape[0]} outputs, got {groups}")
    if math.prod(shape[1:]) >= 1 << 30:
        raise ValueError(f"a weight's K must be below 2^30, got shape {list(shape)}")


def check_binary_weight_linear(x: Any, weight_shape: Sequence[int], scale: Any, bias: Any) -> None:
    """Checks the arguments of linear_binary_weight but for its weight, which is [N, K]."""
    N, K = weight_shape
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() == 0 or _differ(x.shape[-1], K):
        raise ValueError(f"x must have a last dimension of K = {K}, got shape {list(x.shape)}")
    _check_scale_and_bias(N, scale, bias)


def check_binary_weight_conv2d(x: Any, weight_shape: Sequence[int], geometry: Geometry, scale: Any, bias: Any) -> None:
    """Checks the arguments of conv2d_binary_weight but for its weight, which is [O, I/groups, kh, kw]."""
    O, I, *kernel = weight_shape
    channels = I * geometry.groups
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() != 4 or _differ(x.shape[1], channels) or any(_below(size, 1) for size in x.shape[2:]):
        raise ValueError(f"x must be [N, {channels}, H, W] with H and W of at least 1, got shape {list(x.shape)}")
    check_conv2d_input(x.shape[2:], kernel, geometry)
    _check_scale_and_bias(O, scale, bias)


def check_portable_bytes(weight: Any, shape: Sequence[int]) -> None:
    """Checks that packed bytes are as many as a weight's portable words, which is how GPUs read binary weights."""
    check_tensor("weight", weight, (torch.uint8,))
    O, I, *kernel = shape
    check_shape("weight", weight, (4 * O * math.prod(kernel) * words_for(I),))


def check_float_conv2d(x: Any, weight: Any, weight_shape: Sequence[int], geometry: Geometry) -> None:
    """Checks the arguments of conv2d_float but for its epilogue."""
    O, I, kh, kw = weight_shape
    check_tensor("weight.data", weight, (torch.float32, torch.bfloat16))
    panels, K = -(-O // FLOAT_PANEL), kh * kw * I
    if weight.dtype is torch.bfloat16:
        parts = 1 if weight.dim() == 6 and weight.shape[2] == 1 else 2
        steps = -(-K // BFLOAT16_STEP), parts, BFLOAT16_STEP // 2
        check_shape("weight.data", weight, (panels, *steps, FLOAT_PANEL, 2))
    else:
        check_shape("weight.data", weight, (panels, K, FLOAT_PANEL))
    check_tensor("x", x, (torch.float32, torch.int32))
    words = x.dtype is torch.int32
    channels = words_for(I) if words else I
    if x.dim() != 4 or _differ(x.shape[3 if words else 1], channels):
        form = f"int32 [N, H, W, {channels}]" if words else f"[N, {channels}, H, W]"
        raise ValueError(f"x must be {form} for weights of {I} channels, got shape {list(x.shape)}")
    check_conv2d_input(x.shape[1:3] if words else x.shape[2:], (kh, kw), geometry)


def check_max_pool2d(
    x_words: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> None:
    """Checks the arguments of max_pool2d_signs."""
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    if any(_below(size, 1) for size in x_words.shape[1:]):
        raise ValueError(f"x_words must have at least one pixel and one word, got shape {list(x_words.shape)}")
    kernels, strides = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
    paddings, dilations = pair("padding", padding, 0), pair("dilation", dilation, 1)
    if dilations != (1, 1) and paddings != (0, 0):
        # Windows may then lie in the padding alone, where torch's maximum is minus infinity.
        raise ValueError(f"dilation must be 1 where padding is not 0, got {dilation} and {padding}")
    for i, size in enumerate(x_words.shape[1:3]):
        kernel, space, spread = kernels[i], paddings[i], dilations[i]
        if space > kernel // 2:
            raise ValueError(f"padding must be at most half of kernel_size {kernel}, got {space}")
        if _below(max_pool2d_out_size(size, kernel, strides[i], space, spread, ceil_mode), 1):
            raise ValueError(f"kernel_size {kernel} with dilation {spread} reaches beyond {size} padded by {space}")
