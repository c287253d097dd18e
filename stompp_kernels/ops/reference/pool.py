"""Max pooling of signs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool2d_out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Returns the windows along one dimension, as torch counts them."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    # No window may begin in the padding behind the input.
    return torch.sym_min(-(-room // stride) + 1, -(-(size + padding) // stride))


def max_pool2d_signs(
    x_words: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Takes the AND, which is the largest of signs; the padding is -1 in every channel, which changes no maximum."""
    pooled = x_words
    for i in (0, 1):
        axis, reach, size = 1 + i, dilation[i] * (kernel[i] - 1), pooled.shape[1 + i]
        windows = max_pool2d_out_size(size, kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        span = (windows - 1) * stride[i] + 1
        behind = max(0, span + reach - size - padding[i])
        padded = F.pad(pooled, [0, 0] * (3 - axis) + [padding[i], behind], value=-1)
        # One tensor of the first pixel of each window, one of the second, and so on.
        taps = [padded.narrow(axis, tap * dilation[i], span) for tap in range(kernel[i])]
        taps = [tap[:, :: stride[i]] if axis == 1 else tap[:, :, :: stride[i]] for tap in taps]
        pooled = functools.reduce(torch.bitwise_and, taps)
    return pooled.clone(memory_format=torch.contiguous_format)
