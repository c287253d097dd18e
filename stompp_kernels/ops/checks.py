"""Argument checks that the ops share: an error names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.ops.reference import mask_rows, result_format, words_for

SHORT_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*SHORT_FLOATS, torch.float64)
SURROGATES = ("none", "identity", "clip", "approx_sign")


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(value.shape)}")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_short_floats(x: Any) -> None:
    """That x can be packed: [..., K] of a type that signs are packed from."""
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last dimension of at least 1, got shape {list(x.shape)}")


def check_words(name: str, words: Tensor, K: int) -> None:
    """Raises unless ``words`` are int32 rows of K bits."""
    check_tensor(name, words, (torch.int32,))
    if K < 1:
        raise ValueError(f"K must be at least 1, got {K}")
    if words.dim() == 0 or words.shape[-1] != words_for(K):
        raise ValueError(
            f"{name} must have a last dimension of ceil(K/32) = {words_for(K)} words for K = {K}, "
            f"got shape {list(words.shape)}"
        )


def check_limits(x: Any, low: Any, high: Any) -> None:
    """That low and high are limits of x's channels."""
    check_short_floats(x)
    for name, limits in (("low", low), ("high", high)):
        check_tensor(name, limits, (torch.float32,))
        check_shape(name, limits, x.shape[-1:])


def check_progressive(u: Any, mask_words: Any, surrogate: str, batch_shared: bool) -> None:
    """The arguments of the progressive op."""
    check_tensor("u", u, FLOATS)
    check_choice("surrogate", surrogate, SURROGATES)
    if batch_shared and u.dim() == 0:
        raise ValueError("u must have a batch dimension when the mask is shared by the batch, got a scalar")
    if mask_words is not None:
        check_tensor("mask_words", mask_words, (torch.int32,))
        check_shape("mask_words", mask_words, (words_for(mask_rows(u, batch_shared)[1]),))


def check_draw(draw: Any) -> None:
    """The state of a mask that is drawn in the op; its values are checked where they are read on the CPU."""
    check_tensor("draw", draw, (torch.int64,))
    check_shape("draw", draw, (4,))


def check_gradient(grad: Any, u: Tensor) -> None:
    """That grad is a gradient of u's shape and type."""
    check_tensor("grad", grad, (u.dtype,))
    check_shape("grad", grad, u.shape)


def check_gate(grad: Tensor, gate: Any, like: Tensor, batch_shared: bool) -> None:
    """That the gate has a bit for each element of ``like``: dense, of grad's shape, its batch outermost if shared."""
    if batch_shared and grad.dim() == 0:
        raise ValueError("grad must have a batch dimension when the mask is shared by the batch, got a scalar")
    if grad.numel() > 0 and result_format(like, batch_shared) is not torch.preserve_format:
        raise ValueError(
            "strides must be those of dense elements, the batch outermost where it shares a mask, "
            f"got {list(like.stride())} for shape {list(like.shape)}"
        )
    rows, n = mask_rows(grad, batch_shared)
    check_tensor("gate", gate, (torch.int32,))
    check_shape("gate", gate, (rows, words_for(n)))


def check_refresh(mask_words: Any, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
    """The arguments of a mask's refresh."""
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
    """A probability and what names the random words of a tensor at a step."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if not 0 <= tensor_id < 1 << 32:
        raise ValueError(f"tensor_id must fit 32 bits, got {tensor_id}")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"seed must be in [-2^63, 2^63), got {seed}")
    if not 0 <= step < 1 << 63:
        raise ValueError(f"step must be in [0, 2^63), got {step}")


def pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    """An int or two as two, as torch's convolutions take them."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(v, int) for v in both):
        raise ValueError(f"{name} must be an int or two ints, got {value!r}")
    if min(both) < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}")
    return both


def conv2d_out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output pixels along one dimension, as in torch.nn.Conv2d."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check_conv2d_input(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[int, int]:
    """That a kernel fits an input of this height and width, numbers or symbols. The output's are returned."""
    stride, padding, dilation = pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1)
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"the input must have at least one row and column of pixels, got {size[0]}x{size[1]}")
    OH, OW = (conv2d_out_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    if OH < 1 or OW < 1:
        raise ValueError(
            f"the kernel {kernel[0]}x{kernel[1]} with dilation {dilation} reaches beyond the {size[0]}x{size[1]} input "
            f"padded by {padding}"
        )
    return OH, OW


def _check_scale_and_bias(N: int, scale: Any, bias: Any) -> None:
    for name, values in (("scale", scale), ("bias", bias)):
        if name == "scale" or values is not None:
            check_tensor(name, values, (torch.float32,))
            check_shape(name, values, (N,))


def check_binary_weight_linear(x: Any, weight_shape: Sequence[int], scale: Any, bias: Any) -> None:
    """The arguments of linear_binary_weight but for its weight, which is [N, K]."""
    N, K = weight_shape
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() == 0 or x.shape[-1] != K:
        raise ValueError(f"x must have a last dimension of K = {K}, got shape {list(x.shape)}")
    _check_scale_and_bias(N, scale, bias)


def check_binary_weight_conv2d(
    x: Any,
    weight_shape: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    scale: Any,
    bias: Any,
) -> None:
    """The arguments of conv2d_binary_weight but for its weight, which is [O, I/groups, kh, kw]."""
    O, I, kh, kw = weight_shape
    check_tensor("x", x, SHORT_FLOATS)
    if x.dim() != 4 or x.shape[1] != I * groups or min(x.shape[2:]) < 1:
        raise ValueError(f"x must be [N, {I * groups}, H, W] with H and W of at least 1, got shape {list(x.shape)}")
    check_conv2d_input(x.shape[2:], (kh, kw), stride, padding, dilation)
    _check_scale_and_bias(O, scale, bias)


def check_portable_bytes(weight: Any, shape: Sequence[int]) -> None:
    """That packed bytes have the size of a weight's portable words, which is how GPUs read binary weights."""
    check_tensor("weight", weight, (torch.uint8,))
    O, I, *kernel = shape
    check_shape("weight", weight, (4 * O * math.prod(kernel) * words_for(I),))
