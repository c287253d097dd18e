"""Float activations with binary weights (Binary-Weight-Networks, Rastegari et al., ECCV 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import (
    SHORT_FLOATS,
    check_binary_weight_conv2d,
    check_binary_weight_linear,
    check_tensor,
)
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.geometry import Geometry, conv2d_out_sizes
from stompp_kernels.ops.gradients import Conv2dBinaryWeight, LinearBinaryWeight, gradient_wanted, refuse_to_cut
from stompp_kernels.ops.pack import PackedWeight, check_weight_shape, pack_signs
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.schemas import kernels_for

_ops = torch.ops.stompp


class BinaryWeight(PackedWeight):
    """Binary weights in the order that the kernels for float activations read, which is not that of bgemm's.

    Its attributes, methods and portable words are those of :class:`PackedWeight`.

    Example:
        >>> weight = pack_binary_weight(torch.tensor([[0.3, -0.1, 2.0], [-1.0, 0.0, -5.0]]))
        >>> weight.unpack()
        tensor([[ 1., -1.,  1.],
                [-1.,  1., -1.]])
    """

    @staticmethod
    def _pack(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
        return _ops.pack_binary_weight_words(words, shape, groups)

    @staticmethod
    def _unpack(data: Tensor, shape: Sequence[int], groups: int) -> Tensor:
        return _ops.unpack_binary_weight_words(data, shape, groups)


def pack_binary_weight(w: Tensor, groups: int = 1) -> BinaryWeight:
    """Packs the signs of weights for :func:`linear_binary_weight` or :func:`conv2d_binary_weight`.

    Args:
        w: float32, float16 or bfloat16, shape [N, K] or [O, I/groups, kh, kw].
        groups: as the convolution will run with.

    Raises:
        TypeError, ValueError: an argument is not as above, or ``groups`` does not divide O.
        RuntimeError: a gradient would be cut, as by :func:`pack_signs`.

    Example:
        >>> pack_binary_weight(torch.randn(8, 3, 3, 3)).shape
        (8, 3, 3, 3)
    """
    check_tensor("w", w, SHORT_FLOATS)
    check_weight_shape(w.shape, groups)
    refuse_to_cut("pack_binary_weight", w=w)
    words = pack_signs(w if w.dim() == 2 else w.permute(0, 2, 3, 1))
    return BinaryWeight.from_words(words, w.shape, groups)


def linear_binary_weight(x: Tensor, weight: BinaryWeight, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``scale[n] * sum over k of x[k] * w[n, k] + bias[n]``, w in {-1, +1}.

    It does so in float32 whatever the type of x, in an order of additions that depends on the implementation, but on
    neither the number of threads nor the other rows. x, scale and bias get the gradients of this formula.

    Args:
        x: float32, float16 or bfloat16, shape [..., K].
        weight: [N, K], made by :func:`pack_binary_weight`.
        scale: float32 [N].
        bias: float32 [N]; None adds nothing.

    Returns:
        x's dtype, shape [..., N].

    Raises:
        TypeError, ValueError: an argument's type, dtype or shape is not as above.

    Example:
        >>> weight = pack_binary_weight(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]))
        >>> linear_binary_weight(torch.tensor([[0.5, 2.0, 1.0]]), weight, scale=torch.tensor([1.0, 2.0]))
        tensor([[-0.5000, -7.0000]])
    """
    # Another PackedWeight would be right on the CPU, and packed again at every call.
    if not native.kernels_check(x) or not isinstance(weight, BinaryWeight):
        _check_linear(x, weight, scale, bias)
    try:
        N, K = weight.shape
        if gradient_wanted(x, scale, bias):
            return LinearBinaryWeight.apply(x, weight.data, N, K, scale, bias)
        return kernels_for(x).linear_binary_weight.default(x, weight.data, N, K, scale, bias)
    except Exception:
        _check_linear(x, weight, scale, bias)  # says in this function's terms what the kernel refused
        raise


def conv2d_binary_weight(
    x: Tensor,
    weight: BinaryWeight,
    scale: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves floats with +-1 weights, pads with zeros, and scales and shifts each channel.

    x, scale and bias get their gradients.

    Args:
        x: float32, float16 or bfloat16, shape [N, C, H, W]; channels_last is read as it lies, other strides are copied.
        weight: [O, C/groups, kh, kw], made by :func:`pack_binary_weight` with the same groups.
        scale: float32 [O].
        bias: float32 [O]; None adds nothing.
        stride, padding, dilation: an int or (height, width), in pixels.
        groups: C and O are divided by it.

    Returns:
        x's dtype, shape [N, O, OH, OW], channels_last; rounded as by :func:`linear_binary_weight`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or range is not as above, or the kernel's reach is
            larger than the padded input.

    Example:
        >>> weight = pack_binary_weight(-torch.ones(2, 3, 3, 3))
        >>> y = conv2d_binary_weight(torch.ones(1, 3, 4, 4), weight, scale=torch.tensor([1.0, 0.5]), padding=1)
        >>> y.shape, y[0, :, 0, 0]  # at the corner 4 of the 9 taps lie in the image
        (torch.Size([1, 2, 4, 4]), tensor([-12.,  -6.]))
    """
    if not native.kernels_check(x) or not isinstance(weight, BinaryWeight):
        _check_conv2d(x, weight, Geometry(stride, padding, dilation, groups), scale, bias)
    try:
        # The schema of Triton's op, inferred by torch, does not take an int for two.
        both = [[value, value] if isinstance(value, int) else value for value in (stride, padding, dilation)]
        gradient = gradient_wanted(x, scale, bias)
        op = Conv2dBinaryWeight.apply if gradient else kernels_for(x).conv2d_binary_weight.default
        return op(x, weight.data, weight.shape, *both, groups, scale, bias)
    except Exception:
        # Says in this function's terms what the kernel refused.
        _check_conv2d(x, weight, Geometry(stride, padding, dilation, groups), scale, bias)
        raise


def _check_weight(weight: BinaryWeight, dims: int) -> None:
    if not isinstance(weight, BinaryWeight):
        raise TypeError(f"weight must be a BinaryWeight made by pack_binary_weight, got {type(weight).__name__}")
    if len(weight.shape) != dims:
        allowed = "[N, K]" if dims == 2 else "[O, I/groups, kh, kw]"
        raise ValueError(f"weight must be packed from {allowed}, got shape {list(weight.shape)}")


def _check_linear(x: Tensor, weight: BinaryWeight, scale: Tensor, bias: Tensor | None) -> None:
    _check_weight(weight, 2)
    check_binary_weight_linear(x, weight.shape, scale, bias)


def _check_conv2d(x: Tensor, weight: BinaryWeight, geometry: Geometry, scale: Tensor, bias: Tensor | None) -> None:
    _check_weight(weight, 4)
    if geometry.groups != weight.groups:
        raise ValueError(f"groups must be the {weight.groups} that the weight was packed with, got {geometry.groups}")
    check_binary_weight_conv2d(x, weight.shape, geometry, scale, bias)


def _packed_bytes(device: torch.device, shape: Sequence[int], groups: int) -> int:
    O, I, *kernel = shape
    if native.library is None or device.type not in ("cpu", "meta"):
        return O * math.prod(kernel) * words_for(I) * 4
    kh, kw = kernel or (1, 1)
    return native.library.packed_bytes(O, I, kh, kw, groups, for_floats=True)


@register_fake("pack_binary_weight_words")
def _(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return words.new_empty(_packed_bytes(words.device, shape, groups), dtype=torch.uint8)


@register_fake("unpack_binary_weight_words")
def _(weight: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    O, I, *kernel = shape
    return weight.new_empty((O, *kernel, words_for(I)), dtype=torch.int32)


@register_fake("linear_binary_weight")
def _(x, weight, N, K, scale, bias):
    return x.new_empty((*x.shape[:-1], N))


@register_fake("conv2d_binary_weight")
def _(x, weight, weight_shape, *arguments):
    *numbers, _, _ = arguments
    OH, OW = conv2d_out_sizes(x.shape[2:], weight_shape[2:], Geometry(*numbers))
    return x.new_empty((x.shape[0], OH, OW, weight_shape[0])).permute(0, 3, 1, 2)
