"""The oracle of every op: plain PyTorch, written to be read, on any device.

Each function has the arguments of the op of its name under ``torch.ops.stompp`` and defines its result bit for bit; of
sums of floats, but for the order of the additions. It is also what runs on a device, or in an installation, that has no
compiled kernel.

Packed weights are opaque bytes; the reference's are simply the portable words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 32
_LOW_32 = 0xFFFFFFFF


def words_for(K: int) -> int:
    """Words of a row of K bits."""
    return (K + WORD_BITS - 1) // WORD_BITS


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., K] to int32 [..., ceil(K/32)], LSB first, zero tail."""
    K = bits.shape[-1]
    padded = F.pad(bits.to(torch.int64), (0, words_for(K) * WORD_BITS - K))
    weights = torch.ones((), dtype=torch.int64, device=bits.device) << torch.arange(WORD_BITS, device=bits.device)
    words = (padded.unflatten(-1, (words_for(K), WORD_BITS)) * weights).sum(-1)
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def bits_from_words(words: Tensor, K: int) -> Tensor:
    """int32 [..., ceil(K/32)] to bool [..., K]."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :K].bool()


def _plus_or_minus_one(negative: Tensor, dtype: torch.dtype) -> Tensor:
    """-1 where ``negative``, else +1; of bare numbers torch.where would first make the default type."""
    one = torch.ones((), dtype=dtype, device=negative.device)
    return torch.where(negative, -one, one)


def sign(u: Tensor) -> Tensor:
    """-1 where u < 0, else +1: sign(0) = sign(-0.0) = sign(NaN) = +1."""
    return _plus_or_minus_one(u < 0, u.dtype)


def pack_signs(x: Tensor) -> Tensor:
    return pack_bits(x < 0)


def pack_outside(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    value = x.to(torch.float32)
    return pack_bits((value < low) | (value > high))


def unpack_signs(words: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    return _plus_or_minus_one(bits_from_words(words, K), dtype)


def pack_weight(w: Tensor) -> Tensor:
    return pack_weight_words(pack_signs(w), w.shape, 1)


def pack_conv_weight(w: Tensor, groups: int) -> Tensor:
    return pack_weight_words(pack_signs(w.permute(0, 2, 3, 1)), w.shape, groups)


def pack_weight_words(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return words.contiguous().flatten().view(torch.uint8).clone()


def unpack_weight_words(weight: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    O, I, *kernel = shape
    return weight.clone().view(torch.int32).reshape(O, *kernel, words_for(I))


def bgemm(a_words: Tensor, weight: Tensor, N: int, K: int) -> Tensor:
    a = unpack_signs(a_words, K, torch.float64)
    w = unpack_signs(unpack_weight_words(weight, (N, K), 1), K, torch.float64)
    return (a @ w.T).to(torch.int32)


def bconv2d(
    x_words: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: int,
) -> Tensor:
    I = weight_shape[1]
    x = unpack_signs(x_words, I * groups, torch.float64).permute(0, 3, 1, 2)
    w = unpack_signs(unpack_weight_words(weight, weight_shape, groups), I, torch.float64).permute(0, 3, 1, 2)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(padding_value))
    y = F.conv2d(x, w, None, tuple(stride), 0, tuple(dilation), groups)
    return y.permute(0, 2, 3, 1).contiguous().to(torch.int32)


def fused_multiply_add(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x * scale + bias of float32 tensors, rounded once."""
    product = x.double() * scale.double()  # exact: 24 + 24 bits
    total = product + bias.double()
    part = total - product
    lost = (product - (total - part)) + (bias.double() - part)  # Knuth's TwoSum
    # Rounded to odd where the sum is not exact, so that rounding it again is as if it had been rounded once.
    even = total.view(torch.int64) & 1 == 0
    odd = torch.nextafter(total, torch.where(lost > 0, torch.inf, -torch.inf).to(torch.float64))
    return torch.where(even & (lost != 0) & total.isfinite(), odd, total).float()


FLOAT_PANEL = 32  # outputs of a panel of float weights


def multiply_add(x: Tensor, scale: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """x * scale + bias per last dimension, in float32, each operation rounded on its own or fused."""
    x = x.to(torch.float32)
    return fused_multiply_add(x, scale, bias) if fused else x * scale + bias


def affine(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    dtype: torch.dtype,
) -> Tensor:
    """scale * acc + bias (+ residual, or residual_scale * residual + residual_bias) per last dimension, in float32."""
    y = multiply_add(acc, scale, bias, fused)
    if residual is not None:
        residual = residual.to(torch.float32)
        if residual_scale is not None and residual_bias is not None:
            residual = multiply_add(residual, residual_scale, residual_bias, fused)
        y = y + residual
    return y.to(dtype)


def threshold(acc: Tensor, thresholds: Tensor, flip_words: Tensor, residual_words: Tensor | None) -> Tensor:
    """Bit = (acc < threshold) ^ flip; the second row of thresholds where the residual's bit is set."""
    N = acc.shape[-1]
    chosen = thresholds[0]
    if residual_words is not None:
        chosen = torch.where(bits_from_words(residual_words, N), thresholds[1], thresholds[0])
    return pack_bits((acc < chosen) ^ bits_from_words(flip_words, N))


def bgemm_affine(
    a_words: Tensor,
    weight: Tensor,
    N: int,
    K: int,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    dtype: torch.dtype,
) -> Tensor:
    return affine(bgemm(a_words, weight, N, K), scale, bias, residual, residual_scale, residual_bias, fused, dtype)


def bgemm_affine_signs(
    a_words: Tensor,
    weight: Tensor,
    N: int,
    K: int,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    floats: bool,
) -> tuple[Tensor, Tensor]:
    y = affine(bgemm(a_words, weight, N, K), scale, bias, residual, residual_scale, residual_bias, fused, torch.float32)
    return y if floats else y.new_empty(0), pack_signs(y)


def bgemm_threshold(
    a_words: Tensor,
    weight: Tensor,
    N: int,
    K: int,
    thresholds: Tensor,
    flip_words: Tensor,
    residual_words: Tensor | None,
) -> Tensor:
    return threshold(bgemm(a_words, weight, N, K), thresholds, flip_words, residual_words)


def bconv2d_affine(
    x_words: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: int,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    dtype: torch.dtype,
) -> Tensor:
    acc = bconv2d(x_words, weight, weight_shape, stride, padding, dilation, groups, padding_value)
    return affine(acc, scale, bias, residual, residual_scale, residual_bias, fused, dtype)


def bconv2d_affine_signs(
    x_words: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: int,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_bias: Tensor | None,
    fused: bool,
    floats: bool,
) -> tuple[Tensor, Tensor]:
    acc = bconv2d(x_words, weight, weight_shape, stride, padding, dilation, groups, padding_value)
    y = affine(acc, scale, bias, residual, residual_scale, residual_bias, fused, torch.float32)
    return y if floats else y.new_empty(0), pack_signs(y)


def bconv2d_threshold(
    x_words: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: int,
    thresholds: Tensor,
    flip_words: Tensor,
    residual_words: Tensor | None,
) -> Tensor:
    acc = bconv2d(x_words, weight, weight_shape, stride, padding, dilation, groups, padding_value)
    return threshold(acc, thresholds, flip_words, residual_words)


def max_pool2d_out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along one dimension, as torch counts them."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    # None may begin in the padding behind the input.
    return torch.sym_min(-(-room // stride) + 1, -(-(size + padding) // stride))


def max_pool2d_signs(
    x_words: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """The largest of signs is their AND; padding is all ones, -1 in every channel, which changes no maximum."""
    pooled = x_words
    for i in (0, 1):
        axis, reach, size = 1 + i, dilation[i] * (kernel[i] - 1), pooled.shape[1 + i]
        windows = max_pool2d_out_size(size, kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        span = (windows - 1) * stride[i] + 1
        behind = max(0, span + reach - size - padding[i])
        padded = F.pad(pooled, [0, 0] * (3 - axis) + [padding[i], behind], value=-1)
        # The first of each window's pixels, the second of each, and so on.
        taps = [padded.narrow(axis, tap * dilation[i], span) for tap in range(kernel[i])]
        taps = [tap[:, :: stride[i]] if axis == 1 else tap[:, :, :: stride[i]] for tap in taps]
        pooled = functools.reduce(torch.bitwise_and, taps)
    return pooled.clone(memory_format=torch.contiguous_format)


def pack_binary_weight_words(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return pack_weight_words(words, shape, groups)


def unpack_binary_weight_words(weight: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return unpack_weight_words(weight, shape, groups)


def _signs_of(weight: Tensor, shape: Sequence[int]) -> Tensor:
    return unpack_signs(unpack_weight_words(weight, shape, 1), shape[1], torch.float32)


def _scaled(sums: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = sums * scale
    return (y if bias is None else y + bias).to(dtype)


def linear_binary_weight(x: Tensor, weight: Tensor, N: int, K: int, scale: Tensor, bias: Tensor | None) -> Tensor:
    """In float32; the one oracle here whose additions may be done in another order."""
    return _scaled(x.to(torch.float32) @ _signs_of(weight, (N, K)).T, scale, bias, x.dtype)


def conv2d_binary_weight(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """In float32; the additions may be done in another order, as in linear_binary_weight."""
    w = _signs_of(weight, weight_shape).permute(0, 3, 1, 2)
    sums = F.conv2d(x.to(torch.float32), w, None, tuple(stride), tuple(padding), tuple(dilation), groups)
    y = _scaled(sums.permute(0, 2, 3, 1), scale, bias, x.dtype)
    return y.contiguous().permute(0, 3, 1, 2)


def unpack_float_weight(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Panels [ceil(O/32), kh * kw * I, 32] to [O, I, kh, kw]."""
    O, I, kh, kw = shape
    return weight.transpose(1, 2).reshape(-1, kh, kw, I)[:O].permute(0, 3, 1, 2)


def conv2d_float(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: Tensor | None,
    bias: Tensor | None,
    fused: bool,
) -> Tensor:
    """x: floats or words; weight: [panels, kh * kw * I, 32]. The sums may be done in another order."""
    if x.dtype is torch.int32:
        x = unpack_signs(x, weight_shape[1], torch.float32).permute(0, 3, 1, 2)
    w = unpack_float_weight(weight, weight_shape)
    y = F.conv2d(x, w, None, tuple(stride), tuple(padding), tuple(dilation)).permute(0, 2, 3, 1)
    if scale is not None and bias is not None:
        y = multiply_add(y, scale, bias, fused)
    return y.contiguous().permute(0, 3, 1, 2)


def conv2d_float_signs(
    x: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    low: Tensor,
    high: Tensor,
) -> Tensor:
    y = conv2d_float(x, weight, weight_shape, stride, padding, dilation, None, None, False)
    return pack_outside(y.permute(0, 2, 3, 1), low, high)


def _frozen(u: Tensor, mask_words: Tensor | None, batch_shared: bool) -> Tensor:
    """The mask as bools that broadcast to u."""
    if mask_words is None:
        return torch.ones((), dtype=torch.bool, device=u.device).expand(u.shape)
    shape = u.shape[1:] if batch_shared else u.shape
    return bits_from_words(mask_words, shape.numel()).reshape(shape).expand(u.shape)


def keeps_strides(shape: Sequence[int], strides: Sequence[int], batch_shared: bool) -> bool:
    """Whether the elements are dense: no gaps or overlaps, in any order of dimensions, a batch outermost."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return not batch_shared or shape[0] == 1 or strides[0] == math.prod(shape[1:])


def result_format(u: Tensor, batch_shared: bool) -> torch.memory_format:
    """Memory format of the progressive op's result: a dense u, its batch outermost, keeps its strides."""
    kept = keeps_strides(u.shape, u.stride(), batch_shared)
    return torch.preserve_format if kept else torch.contiguous_format


def mask_rows(u: Tensor, batch_shared: bool) -> tuple[int, int]:
    """Rows that share a mask, and elements of a row: those of the batch, or one row of everything."""
    return (u.shape[0], u.shape[1:].numel()) if batch_shared else (1, u.numel())


def _commit(u: Tensor, frozen: Tensor, batch_shared: bool) -> Tensor:
    result = torch.where(frozen, sign(u), u.clamp(-1, 1))
    return torch.empty_like(u, memory_format=result_format(u, batch_shared)).copy_(result)


def progressive(u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool) -> Tensor:
    return _commit(u, _frozen(u, mask_words, batch_shared), batch_shared)


def progressive_gated(
    u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> tuple[Tensor, Tensor]:
    """The gate's bits stand in the order in which the elements of the result lie in memory: a row of words for each
    element of a batch that shares a mask, else one row."""
    frozen = _frozen(u, mask_words, batch_shared)
    out = _commit(u, frozen, batch_shared)
    return out, _gate(u, frozen, surrogate, out, batch_shared)


def _gate(u: Tensor, frozen: Tensor, surrogate: str, out: Tensor, batch_shared: bool) -> Tensor:
    inside = u.abs() <= 1
    committed = {"none": torch.zeros_like(inside), "identity": torch.ones_like(inside), "clip": inside}[surrogate]
    gate = torch.empty_like(out, dtype=torch.bool).copy_(torch.where(frozen, committed, inside))
    return pack_bits(rows_in_memory(gate, batch_shared))


def progressive_drawn(u: Tensor, draw: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    """Entry i of the mask, in the order of the result's memory, is 1 where random word i is below draw[3]. The bits are
    the gate's, or for approx_sign the mask's."""
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
    """A view of dense elements in their order in memory, [B, n] or [1, n]."""
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
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words."""
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
    """The random words of n entries, see csrc/core/masks/refresh_mask.h: int64 [n], each below 2^32."""
    groups = torch.arange((n + 3) // 4, dtype=torch.int64, device=device)
    constants = [(seed >> 32) & _LOW_32, step & _LOW_32, (step >> 32) & _LOW_32]
    counter = [groups, *(torch.full_like(groups, value) for value in constants)]
    return torch.stack(philox4x32_10(counter, (seed & _LOW_32, tensor_id)), dim=-1).flatten()[:n]


def refresh_limits(p: float, r: float) -> tuple[int, int]:
    """The limits of random words, of 2^32: below the first an entry becomes 1, else below the second 0."""
    redraw = 4294967296.0 / r
    return int(p * redraw), int(redraw)


def refresh_mask_(mask_words: Tensor, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
    random = _random_words(n, seed, tensor_id, step, mask_words.device)
    one_below, redraw_below = refresh_limits(p, r)
    frozen = (random < one_below) | (bits_from_words(mask_words, n) & (random >= redraw_below))
    mask_words.copy_(pack_bits(frozen))
