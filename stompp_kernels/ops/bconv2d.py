"""Binary 2-D convolution on packed NHWC bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import (
    check_choice,
    check_conv2d_input,
    check_tensor,
    check_words,
    conv2d_out_size,
    pair,
)
from stompp_kernels.ops.epilogue import Affine, AffineSigns, Epilogue
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.gradients import Bconv2dAffine, gradient_wanted
from stompp_kernels.ops.pack import PackedWeight
from stompp_kernels.ops.reference import words_for

_ops = torch.ops.stompp
_bconv2d_affine = _ops.bconv2d_affine.default  # looked up once: small products take microseconds


def bconv2d(
    x_words: Tensor,
    weight: PackedWeight,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_value: int = 0,
    epilogue: Epilogue = None,
) -> Any:
    """Convolution of +-1 pixels with +-1 weights.

    Args:
        x_words: int32 [N, H, W, ceil(C/32)], made by :func:`pack_signs` from NHWC.
        weight: [O, C/groups, kh, kw], made by :func:`pack_conv_weight` with the same groups.
        stride, padding, dilation: an int or (height, width), in pixels.
        groups: C and O are divided by it.
        padding_value: 0 pads as torch does (a padded tap adds nothing), +1 or -1 with that value.
        epilogue: :class:`Affine`, :class:`AffineSigns` or :class:`Threshold`; None keeps the accumulator.

    Returns:
        int32 [N, OH, OW, O]; with Affine its dtype; with Threshold or AffineSigns int32 words [N, OH, OW, ceil(O/32)],
        with the latter on request after float32 [N, OH, OW, O].

    Gradients reach the floats of an Affine: scale, bias, residual and the residual's own scale and bias.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or range is not as above, or the kernel's reach is
            larger than the padded input.
        RuntimeError: a float of AffineSigns requires a gradient, see :func:`stompp_kernels.ops.signs_as_constants`.
    """
    geometry = stride, padding, dilation, groups, padding_value
    if not native.product_kernels_check(x_words):
        _check(x_words, weight, *geometry, epilogue)
    try:
        if epilogue is None:
            return _ops.bconv2d.default(x_words, weight.data, weight.shape, *geometry)
        if isinstance(epilogue, Affine):
            e = epilogue
            if gradient_wanted(*e.floats_read()):
                pairs = pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1)
                arguments = *pairs, groups, padding_value, *e.operands(), e.dtype
                return Bconv2dAffine.apply(x_words, weight.data, weight.shape, *arguments)
            return _bconv2d_affine(x_words, weight.data, weight.shape, *geometry, *e.operands(), e.dtype)
        if isinstance(epilogue, AffineSigns):
            s = epilogue
            if gradient_wanted(*s.floats_read()):
                return s.with_signs(bconv2d(x_words, weight, *geometry, s.affine()))
            both = _ops.bconv2d_affine_signs.default(
                x_words, weight.data, weight.shape, *geometry, *s.operands(), s.floats
            )
            return s.chosen(*both)
        t = epilogue
        return _ops.bconv2d_threshold.default(
            x_words, weight.data, weight.shape, *geometry, t.thresholds, t.flip_words, t.residual_words
        )
    except Exception:
        _check(x_words, weight, *geometry, epilogue)  # says in this function's terms what the kernel refused
        raise


def _check(
    x_words: Tensor,
    weight: PackedWeight,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_value: int,
    epilogue: Epilogue,
) -> None:
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must be a PackedWeight made by pack_conv_weight, got {type(weight).__name__}")
    if len(weight.shape) != 4:
        raise ValueError(f"weight must be packed from [O, I/groups, kh, kw], got shape {list(weight.shape)}")
    if groups != weight.groups:
        raise ValueError(f"groups must be the {weight.groups} that the weight was packed with, got {groups}")
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    O, I, kh, kw = weight.shape
    check_words("x_words", x_words, I * groups)
    check_choice("padding_value", padding_value, (0, 1, -1))
    OH, OW = check_conv2d_input(x_words.shape[1:3], (kh, kw), stride, padding, dilation)
    if epilogue is not None:
        epilogue.check((x_words.shape[0], OH, OW, O))


def _out_pixels(x_words, weight_shape, stride, padding, dilation):
    return tuple(
        conv2d_out_size(x_words.shape[1 + i], weight_shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)
    )


@register_fake("bconv2d")
def _(x_words, weight, weight_shape, stride, padding, dilation, groups, padding_value):
    pixels = _out_pixels(x_words, weight_shape, stride, padding, dilation)
    return x_words.new_empty((x_words.shape[0], *pixels, weight_shape[0]))


@register_fake("bconv2d_affine")
def _(
    x_words,
    weight,
    weight_shape,
    stride,
    padding,
    dilation,
    groups,
    padding_value,
    scale,
    bias,
    residual,
    residual_scale,
    residual_bias,
    fused,
    dtype,
):
    pixels = _out_pixels(x_words, weight_shape, stride, padding, dilation)
    return x_words.new_empty((x_words.shape[0], *pixels, weight_shape[0]), dtype=dtype)


@register_fake("bconv2d_affine_signs")
def _(
    x_words,
    weight,
    weight_shape,
    stride,
    padding,
    dilation,
    groups,
    padding_value,
    scale,
    bias,
    residual,
    residual_scale,
    residual_bias,
    fused,
    floats,
):
    rows = (x_words.shape[0], *_out_pixels(x_words, weight_shape, stride, padding, dilation))
    shape = (*rows, weight_shape[0]) if floats else (0,)
    return scale.new_empty(shape), x_words.new_empty((*rows, words_for(weight_shape[0])))


@register_fake("bconv2d_threshold")
def _(
    x_words,
    weight,
    weight_shape,
    stride,
    padding,
    dilation,
    groups,
    padding_value,
    thresholds,
    flip_words,
    residual_words,
):
    pixels = _out_pixels(x_words, weight_shape, stride, padding, dilation)
    return x_words.new_empty((x_words.shape[0], *pixels, words_for(weight_shape[0])))
