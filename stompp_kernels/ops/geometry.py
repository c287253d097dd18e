"""The geometry of a convolution: what it is called with besides its tensors and the shape of its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """The numbers of a 2-D convolution, in the order in which the ops take them.

    Attributes:
        stride, padding, dilation: two ints each, (height, width); where a check says so, an int serves for both.
        groups: both channels are divided by it.
        padding_value: 0, or +1 or -1, which :func:`stompp_kernels.ops.bconv2d` alone knows.
    """

    stride: Any
    padding: Any
    dilation: Any
    groups: int = 1
    padding_value: int = 0


def conv2d_out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Returns the output pixels along one dimension, as torch.nn.Conv2d counts them."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_out_sizes(size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> tuple[int, int]:
    """Returns the height and width of the output; stride, padding and dilation are two ints each."""
    stride, padding, dilation = geometry[:3]
    height, width = (conv2d_out_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return height, width
