"""Max pooling of signs, on bits: the largest of some values of {-1, +1} is -1 where all are, which is AND."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import check_tensor, pair
from stompp_kernels.ops.reference import max_pool2d_out_size

_ops = torch.ops.stompp


def max_pool2d_signs(
    x_words: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """What torch.nn.functional.max_pool2d does with +-1 pixels, on packed ones.

    Args:
        x_words: int32 [N, H, W, ceil(C/32)].
        kernel_size, stride, padding, dilation, ceil_mode: as in torch.

    Returns:
        int32 [N, OH, OW, ceil(C/32)].

    Raises:
        TypeError, ValueError: an argument's type or range is not as above, or the window does not fit the input.
    """
    window = kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode
    if not native.kernels_check(x_words):
        _check(x_words, *window)
    try:
        return _ops.max_pool2d_signs.default(x_words, *window)
    except Exception:
        _check(x_words, *window)  # says in this function's terms what the kernel refused
        raise


def _check(
    x_words: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> None:
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    if min(x_words.shape[1:]) < 1:
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
        if max_pool2d_out_size(size, kernel, strides[i], space, spread, ceil_mode) < 1:
            raise ValueError(f"kernel_size {kernel} with dilation {spread} reaches beyond {size} padded by {space}")


@torch.library.register_fake("stompp::max_pool2d_signs")
def _(
    x_words: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    pixels = (
        max_pool2d_out_size(x_words.shape[1 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in (0, 1)
    )
    return x_words.new_empty((x_words.shape[0], *pixels, x_words.shape[3]))
