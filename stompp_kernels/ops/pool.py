"""Max pooling of signs, on bits: the largest of some values of {-1, +1} is -1 where all are, which is AND."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import check_max_pool2d
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.reference import max_pool2d_out_size
from stompp_kernels.ops.schemas import kernels_for


def max_pool2d_signs(
    x_words: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Pools packed +-1 pixels as torch.nn.functional.max_pool2d pools floats.

    Args:
        x_words: int32 [N, H, W, ceil(C/32)].
        kernel_size, stride, padding, dilation, ceil_mode: as in torch.

    Returns:
        int32 [N, OH, OW, ceil(C/32)].

    Raises:
        TypeError, ValueError: an argument's type or range is not as above, or the window does not fit the input.

    Example:
        >>> x = torch.tensor([-1.0, 1.0, -1.0, -1.0]).view(1, 1, 4, 1)  # one row of four pixels, one channel
        >>> unpack_signs(max_pool2d_signs(pack_signs(x), (1, 2)), 1).flatten()
        tensor([ 1., -1.])
    """
    window = kernel_size, kernel_size if stride is None else stride, padding, dilation
    if not native.kernels_check(x_words):
        check_max_pool2d(x_words, *window, ceil_mode)
    pairs = [[value, value] if isinstance(value, int) else value for value in window]
    try:
        return kernels_for(x_words).max_pool2d_signs.default(x_words, *pairs, ceil_mode)
    except Exception:
        check_max_pool2d(x_words, *window, ceil_mode)  # says in this function's terms what the kernel refused
        raise


@register_fake("max_pool2d_signs")
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
