"""Max pooling of signs, on bits: the largest of some values of {-1, +1} is -1 where all are, which is AND."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.ops.checks import check_tensor, pair

_PADDING = -1  # all ones: -1 in every channel, which changes no maximum


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
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    if dilation not in (1, (1, 1)) and padding not in (0, (0, 0)):
        # Windows may then lie in the padding alone, where torch's maximum is minus infinity.
        raise ValueError(f"dilation must be 1 where padding is not 0, got {dilation} and {padding}")
    kernel = pair("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else pair("stride", stride, 1)
    paddings, dilations = pair("padding", padding, 0), pair("dilation", dilation, 1)
    for i in (0, 1):
        x_words = _pool_axis(x_words, 1 + i, kernel[i], strides[i], paddings[i], dilations[i], ceil_mode)
    return x_words.contiguous()


def max_pool2d_out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along one dimension, as torch counts them."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    windows = (-(-room // stride) if ceil_mode else room // stride) + 1
    # None may begin in the padding behind the input.
    return windows - 1 if ceil_mode and (windows - 1) * stride >= size + padding else windows


def _pool_axis(x: Tensor, axis: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Tensor:
    if padding > kernel // 2:
        raise ValueError(f"padding must be at most half of kernel_size {kernel}, got {padding}")
    size = x.shape[axis]
    windows = max_pool2d_out_size(size, kernel, stride, padding, dilation, ceil_mode)
    if windows < 1:
        raise ValueError(f"kernel_size {kernel} with dilation {dilation} reaches beyond {size} padded by {padding}")
    span = (windows - 1) * stride + 1
    behind = max(0, span + dilation * (kernel - 1) - size - padding)
    x = F.pad(x, [0, 0] * (3 - axis) + [padding, behind], value=_PADDING)
    taps = [x.narrow(axis, tap * dilation, span) for tap in range(kernel)]
    taps = [tap[:, ::stride] if axis == 1 else tap[:, :, ::stride] for tap in taps]
    pooled = taps[0]
    for tap in taps[1:]:
        pooled = pooled & tap
    return pooled
