"""Binary 2-D convolution on packed NHWC bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.ops.checks import check_choice, check_conv2d_input, check_tensor, check_words
from stompp_kernels.ops.epilogue import Epilogue, check_operands, parts_of
from stompp_kernels.ops.fake_kernels import register_product_fakes
from stompp_kernels.ops.forms import Form
from stompp_kernels.ops.geometry import Geometry
from stompp_kernels.ops.gradients import Bconv2dAffine
from stompp_kernels.ops.pack import PackedWeight
from stompp_kernels.ops.product import binary_product


def _check(own: tuple[Any, ...], form: Form, operands: tuple[Any, ...]) -> None:
    x_words, _, shape, *numbers = own
    geometry = Geometry(*numbers)
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    O, I, *kernel = shape
    check_words("x_words", x_words, I * geometry.groups)
    check_choice("padding_value", geometry.padding_value, (0, 1, -1))
    pixels = check_conv2d_input(x_words.shape[1:3], kernel, geometry)
    check_operands(form, operands, (x_words.shape[0], *pixels, O))


bconv2d_in_parts = binary_product("bconv2d", Bconv2dAffine.apply, _check)


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
    """Convolves +-1 pixels with +-1 weights.

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

    Example:
        >>> x_words = pack_signs(torch.ones(1, 2, 2, 64))  # one image of 2 x 2 pixels and 64 channels
        >>> weight = pack_conv_weight(-torch.ones(1, 64, 3, 3))
        >>> bconv2d(x_words, weight, padding=1).shape
        torch.Size([1, 2, 2, 1])
        >>> bconv2d(x_words, weight, padding=1).flatten()  # 4 of the 9 taps of each pixel lie in the image
        tensor([-256, -256, -256, -256], dtype=torch.int32)
    """
    form, operands = parts_of(epilogue)
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must be a PackedWeight made by pack_conv_weight, got {type(weight).__name__}")
    if len(weight.shape) != 4:
        raise ValueError(f"weight must be packed from [O, I/groups, kh, kw], got shape {list(weight.shape)}")
    if groups != weight.groups:
        raise ValueError(f"groups must be the {weight.groups} that the weight was packed with, got {groups}")
    own = x_words, weight.data, weight.shape, stride, padding, dilation, groups, padding_value
    return bconv2d_in_parts(own, form, operands)


register_product_fakes("bconv2d")
