"""The progressive op, its gradient, and the refresh of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stompp_kernels.ops.reference.bits import bits_from_words, pack_bits, sign

_LOW_32 = 0xFFFFFFFF


def _frozen(u: Tensor, mask_words: Tensor | None, batch_shared: bool) -> Tensor:
    """Returns the mask as bools that broadcast to u."""
    if mask_words is None:
        return torch.ones((), dtype=torch.bool, device=u.device).expand(u.shape)
    shape = u.shape[1:] if batch_shared else u.shape
    return bits_from_words(mask_words, shape.numel()).reshape(shape).expand(u.shape)


def keeps_strides(shape: Sequence[int], strides: Sequence[int], batch_shared: bool) -> bool:
    """Returns whether the elements are dense: no gaps or overlaps, any order of dimensions, a batch outermost."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return not batch_shared or shape[0] == 1 or strides[0] == math.prod(shape[1:])


def result_format(u: Tensor, batch_shared: bool) -> torch.memory_format:
    """Returns the format of the progressive op's result: a dense u, its batch outermost, keeps its strides."""
    kept = keeps_strides(u.shape, u.stride(), batch_shared)
    return torch.preserve_format if kept else torch.contiguous_format


def mask_rows(u: Tensor, batch_shared: bool) -> tuple[int, int]:
    """Returns the rows that share a mask and the elements of a row: those of the batch, or one row of everything."""
    return (u.shape[0], u.shape[1:].numel()) if batch_shared else (1, u.numel())


def _commit(u: Tensor, frozen: Tensor, batch_shared: bool) -> Tensor:
    result = torch.where(frozen, sign(u), u.clamp(-1, 1))
    return torch.empty_like(u, memory_format=result_format(u, batch_shared)).copy_(result)


def progressive(u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool) -> Tensor:
    return _commit(u, _frozen(u, mask_words, batch_shared), batch_shared)


def progressive_gated(
    u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> tuple[Tensor, Tensor]:
    """Computes the same, and the gate of the gradient.

    Its bits stand in the order in which the elements of the result lie in memory: a row of words for each element of a
    batch that shares a mask, else one row.
    """
    frozen = _frozen(u, mask_words, batch_shared)
    out = _commit(u, frozen, batch_shared)
    return out, _gate(u, frozen, surrogate, out, batch_shared)


def _gate(u: Tensor, frozen: Tensor, surrogate: str, out: Tensor, batch_shared: bool) -> Tensor:
    inside = u.abs() <= 1
    committed = {"none": torch.zeros_like(inside), "identity": torch.ones_like(inside), "clip": inside}[surrogate]
    gate = torch.empty_like(out, dtype=torch.bool).copy_(torch.where(frozen, committed, inside))
    return pack_bits(rows_in_memory(gate, batch_shared))


def progressive_drawn(u: Tensor, draw: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    """Computes the same under a mask that is drawn, and the gate of the gradient; for approx_sign the mask instead.

    Entry i of the mask, in the order of the result's memory, is 1 where random word i is below draw[3].
    """
    seed, tensor_id, step, one_below = draw.tolist()
    frozen = torch.empty_like(u, memory_format=result_format(u, False), dtype=torch.bool)
    drawn = _random_words(u.numel(), seed, tensor_id, step, u.device) < one_below
    rows_in_memory(frozen, False).copy_(drawn)
    out = _commit(u, frozen, False)
    if surrogate == "approx_sign":
        return out, pack_bits(drawn.unsqueeze(0))
    return out, _gate(u, frozen, surrogate, out, False)


def progressive_gate_backward(grad: Tensor, gate: Tensor, strides: Sequence[int], batch_shared: bool) -> Tensor:
    result = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)
    rows = rows_in_memory(result, batch_shared)
    rows.masked_fill_(~bits_from_words(gate, rows.shape[1]), 0)
    return result


def rows_in_memory(dense: Tensor, batch_shared: bool) -> Tensor:
    """Returns a view of dense elements in their order in memory, [B, n] or [1, n]."""
    rows, n = mask_rows(dense, batch_shared)
    return dense.as_strided((rows, n), (n, 1))


def progressive_backward(
    grad: Tensor, u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> Tensor:
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    inside = u.abs() <= 1
    clipped = torch.where(inside, grad, zero)
    if surrogate == "none":
        committed = zero.expand(u.shape)
    elif surrogate == "identity":
        committed = grad
    elif surrogate == "clip":
        committed = clipped
    else:
        wide = torch.promote_types(u.dtype, torch.float32)
        committed = torch.where(inside, (grad.to(wide) * (2 - 2 * u.to(wide).abs())).to(grad.dtype), zero)
    result = torch.where(_frozen(u, mask_words, batch_shared), committed, clipped)
    return torch.empty_like(u, memory_format=result_format(u, batch_shared)).copy_(result)


def philox4x32_10(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Runs Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(10):
        # The product may wrap int64; its two's-complement bits are the unsigned ones all the same.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((product1 >> 32) & _LOW_32) ^ c1 ^ key0, ((product0 >> 32) & _LOW_32) ^ c3 ^ key1
        c1, c3 = product1 & _LOW_32, product0 & _LOW_32
        key0, key1 = (key0 + 0x9E3779B9) & _LOW_32, (key1 + 0xBB67AE85) & _LOW_32
    return [c0, c1, c2, c3]


def _random_words(n: int, seed: int, tensor_id: int, step: int, device: torch.device) -> Tensor:
    """Returns the random words of n entries, see csrc/core/masks/refresh_mask.h: int64 [n], each below 2^32."""
    groups = torch.arange((n + 3) // 4, dtype=torch.int64, device=device)
    constants = [(seed >> 32) & _LOW_32, step & _LOW_32, (step >> 32) & _LOW_32]
    counter = [groups, *(torch.full_like(groups, value) for value in constants)]
    return torch.stack(philox4x32_10(counter, (seed & _LOW_32, tensor_id)), dim=-1).flatten()[:n]


def refresh_limits(p: float, r: float) -> tuple[int, int]:
    """Returns two limits up to 2^32: a random word below the first makes an entry 1, else below the second 0."""
    redraw = 4294967296.0 / r
    return int(p * redraw), int(redraw)


def refresh_mask_(mask_words: Tensor, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
    random = _random_words(n, seed, tensor_id, step, mask_words.device)
    one_below, redraw_below = refresh_limits(p, r)
    frozen = (random < one_below) | (bits_from_words(mask_words, n) & (random >= redraw_below))
    mask_words.copy_(pack_bits(frozen))
