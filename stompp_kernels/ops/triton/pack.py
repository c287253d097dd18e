"""Launchers of the packing and unpacking of signs, in ``torch.ops.stompp_triton``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from stompp_kernels.ops.checks import FLOATS, check_choice, check_limits, check_short_floats, check_words
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.triton import kernels, launch
from stompp_kernels.ops.triton.wrap import wrap_triton

_pack_rows, _pack_planes, _unpack_rows = kernels.pack_rows, kernels.pack_planes, kernels.unpack_rows


def _pack(x: Tensor, limits: tuple[Tensor, Tensor] | None) -> Tensor:
    K, row_words = x.shape[-1], words_for(x.shape[-1])
    out = x.new_empty((*x.shape[:-1], row_words), dtype=torch.int32)
    if x.numel() == 0:
        return out
    low, high = (x, x) if limits is None else (limits[0].contiguous(), limits[1].contiguous())
    planes = x.movedim(-1, 1) if x.dim() >= 3 else x
    if not x.is_contiguous() and planes.is_contiguous():
        # A permuted NCHW map: a thread reads along the pixels of a channel.
        pixels, rows = planes.shape[2:].numel(), planes.shape[0] * row_words
        size = launch.planes(x.element_size())
        wrap_triton(_pack_planes)[launch.grid(launch.ceil_div(pixels, size.tile), rows)](
            planes,
            low,
            high,
            out,
            rows,
            pixels,
            K,
            row_words,
            LIMITS=limits is not None,
            PIXELS=size.tile,
            num_warps=size.warps,
        )
        return out
    # Rows without a tail follow each other without a gap: they are one.
    n = x.numel() if K % 32 == 0 else K
    rows = x.numel() // n
    size = launch.elementwise(n, x.element_size())
    wrap_triton(_pack_rows)[launch.grid(launch.ceil_div(n, 8 * size.tile), rows)](
        x.contiguous(),
        low,
        high,
        out.view(torch.uint8),
        rows,
        n,
        4 * words_for(n),
        K,
        LIMITS=limits is not None,
        BYTES=size.tile,
        num_warps=size.warps,
    )
    return out


@triton_op("stompp_triton::unpack_signs", mutates_args={})
def unpack_signs(words: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    check_choice("dtype", dtype, FLOATS)
    check_words("words", words, K)
    out = words.new_empty((*words.shape[:-1], K), dtype=dtype)
    if out.numel() == 0:
        return out
    n = out.numel() if K % 32 == 0 else K
    size = launch.elementwise(n, dtype.itemsize)
    rows = out.numel() // n
    wrap_triton(_unpack_rows)[launch.grid(launch.ceil_div(n, 8 * size.tile), rows)](
        words.contiguous().view(torch.uint8), out, rows, n, 4 * words_for(n), BYTES=size.tile, num_warps=size.warps
    )
    return out


@triton_op("stompp_triton::pack_signs", mutates_args={})
def pack_signs(x: Tensor) -> Tensor:
    check_short_floats(x)
    return _pack(x, None)


@triton_op("stompp_triton::pack_outside", mutates_args={})
def pack_outside(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    check_limits(x, low, high)
    return _pack(x, (low, high))
