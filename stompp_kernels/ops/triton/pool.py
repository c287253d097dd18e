"""Launcher of the pooling of signs, in ``torch.ops.stompp_triton``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from stompp_kernels.ops.checks import check_max_pool2d
from stompp_kernels.ops.reference import max_pool2d_out_size
from stompp_kernels.ops.triton import kernels, launch
from stompp_kernels.ops.triton.wrap import wrap_triton

_max_pool = kernels.max_pool


@triton_op("stompp_triton::max_pool2d_signs", mutates_args={})
def max_pool2d_signs(
    x_words: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    check_max_pool2d(x_words, kernel, stride, padding, dilation, ceil_mode)
    batch, H, W, C = x_words.shape
    OH, OW = (
        max_pool2d_out_size(size, kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i, size in enumerate((H, W))
    )
    out = x_words.new_empty((batch, OH, OW, C))
    if out.numel() == 0:
        return out
    size = launch.pooled_words()
    wrap_triton(_max_pool)[(launch.ceil_div(out.numel(), size.tile),)](
        x_words.contiguous(),
        out,
        out.numel(),
        C,
        H,
        W,
        OH,
        OW,
        stride[0],
        stride[1],
        padding[0],
        padding[1],
        dilation[0],
        dilation[1],
        KERNEL_H=kernel[0],
        KERNEL_W=kernel[1],
        WORDS=size.tile,
        num_warps=size.warps,
    )
    return out
