"""Launchers of the progressive op and of the refresh of masks, in ``torch.ops.stompp_triton``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from stompp_kernels.ops.checks import (
    FLOATS,
    SURROGATES,
    check_choice,
    check_draw,
    check_gate,
    check_gradient,
    check_progressive,
    check_refresh,
    check_tensor,
)
from stompp_kernels.ops.reference import (
    bits_from_words,
    mask_rows,
    pack_bits,
    refresh_limits,
    result_format,
    words_for,
)
from stompp_kernels.ops.triton import kernels, launch
from stompp_kernels.ops.triton.wrap import wrap_triton

_forward, _backward, _gate_backward = kernels.forward, kernels.backward, kernels.gate_backward
_refresh, _permute = kernels.refresh, kernels.permute


def _dense(u: Tensor, batch_shared: bool) -> Tensor:
    """Returns u, or a contiguous copy where its order in memory cannot be kept."""
    return u if result_format(u, batch_shared) is torch.preserve_format else u.contiguous()


def _byte_view(words: Tensor) -> Tensor:
    return words.contiguous().view(torch.uint8)


def _in_memory_order(mask_words: Tensor, u: Tensor, batch_shared: bool) -> Tensor:
    """Returns the mask's bits in the order in which the elements of a dense u lie in memory, as bytes."""
    first = 1 if batch_shared else 0
    dims = [d for d in range(first, u.dim()) if u.shape[d] != 1]
    order = sorted(dims, key=lambda d: -u.stride(d))
    if order == dims:
        return _byte_view(mask_words)
    n = u.shape[first:].numel()
    last = order[-1]
    if order[:-1] != [d for d in dims if d != last]:
        shape = u.shape[first:]
        bits = bits_from_words(mask_words, n).reshape(shape)
        everything = sorted(range(len(shape)), key=lambda d: -u.stride(first + d))
        return _byte_view(pack_bits(bits.permute(everything).flatten()))
    # One dimension moved to the end, as channels_last does.
    C, R = u.shape[last], u.shape[last + 1 :].numel()
    permuted = torch.empty_like(mask_words, memory_format=torch.contiguous_format)
    mask, out = _byte_view(mask_words), permuted.view(torch.uint8)
    size = launch.bit_gather()
    wrap_triton(_permute)[(launch.ceil_div(out.numel(), size.tile),)](
        mask, out, n, out.numel(), C, R, BYTES=size.tile, num_warps=size.warps
    )
    return out


def _run_forward(
    u: Tensor, mask_words: Tensor | None, draw: Tensor | None, surrogate: str, batch_shared: bool, with_gate: bool
) -> tuple[Tensor, Tensor | None]:
    dense = _dense(u, batch_shared)
    out = torch.empty_like(dense)
    rows, n = mask_rows(u, batch_shared)
    gate = u.new_empty((rows, words_for(n)), dtype=torch.int32) if with_gate else None
    if u.numel() == 0:
        return out, gate
    mask_kind = kernels.ALL_FROZEN if mask_words is None else kernels.STORED
    if draw is not None:
        mask_kind = kernels.DRAWN
    size = launch.elementwise(n, u.element_size())
    wrap_triton(_forward)[launch.grid(launch.ceil_div(n, 8 * size.tile), rows)](
        dense,
        dense if mask_words is None else _in_memory_order(mask_words, dense, batch_shared),
        dense if draw is None else draw,
        out,
        out if gate is None else gate.view(torch.uint8),
        rows,
        n,
        4 * words_for(n),
        SURROGATE=SURROGATES.index(surrogate),
        MASK=mask_kind.value,
        GATE=with_gate,
        BYTES=size.tile,
        num_warps=size.warps,
    )
    return out, gate


@triton_op("stompp_triton::progressive", mutates_args={})
def progressive(u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool) -> Tensor:
    check_progressive(u, mask_words, surrogate, batch_shared)
    return _run_forward(u, mask_words, None, surrogate, batch_shared, with_gate=False)[0]


@triton_op("stompp_triton::progressive_gated", mutates_args={})
def progressive_gated(
    u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> tuple[Tensor, Tensor]:
    check_progressive(u, mask_words, surrogate, batch_shared)
    check_choice("surrogate", surrogate, SURROGATES[:3])
    out, gate = _run_forward(u, mask_words, None, surrogate, batch_shared, with_gate=True)
    assert gate is not None
    return out, gate


@triton_op("stompp_triton::progressive_drawn", mutates_args={})
def progressive_drawn(u: Tensor, draw: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    check_progressive(u, None, surrogate, False)
    check_draw(draw)
    out, gate = _run_forward(u, None, draw.contiguous(), surrogate, False, with_gate=True)
    assert gate is not None
    return out, gate


@triton_op("stompp_triton::progressive_gate_backward", mutates_args={})
def progressive_gate_backward(grad: Tensor, gate: Tensor, strides: list[int], batch_shared: bool) -> Tensor:
    check_tensor("grad", grad, FLOATS)
    out = grad.new_empty_strided(grad.shape, strides)
    check_gate(grad, gate, strides, batch_shared)
    if grad.numel() == 0:
        return out
    rows, n = mask_rows(grad, batch_shared)
    size = launch.elementwise(n, grad.element_size())
    wrap_triton(_gate_backward)[launch.grid(launch.ceil_div(n, 8 * size.tile), rows)](
        _like(grad, out),
        _byte_view(gate),
        out,
        rows,
        n,
        4 * words_for(n),
        BYTES=size.tile,
        num_warps=size.warps,
    )
    return out


@triton_op("stompp_triton::progressive_backward", mutates_args={})
def progressive_backward(
    grad: Tensor, u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> Tensor:
    check_progressive(u, mask_words, surrogate, batch_shared)
    check_gradient(grad, u)
    dense = _dense(u, batch_shared)
    out = torch.empty_like(dense)
    if u.numel() == 0:
        return out
    rows, n = mask_rows(u, batch_shared)
    mask_kind = kernels.ALL_FROZEN if mask_words is None else kernels.STORED
    size = launch.elementwise(n, u.element_size())
    wrap_triton(_backward)[launch.grid(launch.ceil_div(n, 8 * size.tile), rows)](
        _like(grad, dense),
        dense,
        dense if mask_words is None else _in_memory_order(mask_words, dense, batch_shared),
        out,
        rows,
        n,
        SURROGATE=SURROGATES.index(surrogate),
        MASK=mask_kind.value,
        BYTES=size.tile,
        num_warps=size.warps,
    )
    return out


def _like(grad: Tensor, dense: Tensor) -> Tensor:
    """Returns grad with its elements in memory in the order of dense ones."""
    return grad if grad.stride() == dense.stride() else torch.empty_like(dense).copy_(grad)


@triton_op("stompp_triton::refresh_mask_", mutates_args={"mask_words"})
def refresh_mask_(mask_words: Tensor, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
    check_refresh(mask_words, n, p, r, seed, tensor_id, step)
    if n == 0:
        return
    one_below, redraw_below = refresh_limits(p, r)
    size = launch.random_words()
    wrap_triton(_refresh)[(launch.ceil_div(words_for(n), size.tile),)](
        mask_words, n, one_below, redraw_below, seed, tensor_id, step, WORDS=size.tile, num_warps=size.warps
    )
