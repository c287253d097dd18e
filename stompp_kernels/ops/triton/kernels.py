"""The kernels, in Triton's language. Bits travel as bytes: byte b of a row of words holds elements 8 b to 8 b + 7.

An elementwise kernel works on tiles of [BYTES, 8] elements of one row. With 16-bit floats the eight elements of a byte
are one 16-byte load of one thread, and a gate byte is put together within the thread; with 32-bit floats neighbouring
threads share a byte. The grid is (tiles of a row, rows), rows beyond its second dimension go on in its third.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What `SURROGATE` stands for; the order is that of ops.checks.SURROGATES.
NONE = tl.constexpr(0)
IDENTITY = tl.constexpr(1)
CLIP = tl.constexpr(2)
APPROX_SIGN = tl.constexpr(3)

# Where the mask comes from, `MASK`.
ALL_FROZEN = tl.constexpr(0)
STORED = tl.constexpr(1)
DRAWN = tl.constexpr(2)


@triton.jit
def _row():
    return (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)


@triton.jit
def _tile(n, BYTES: tl.constexpr):
    """(first element, elements left in the row) of this program's tile, then the offsets of its bytes and elements."""
    first = tl.program_id(0).to(tl.int64) * (8 * BYTES)
    left = tl.minimum(n - first, 8 * BYTES).to(tl.int32)
    byte = tl.arange(0, BYTES)
    return first, left, byte, byte[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def _valid_bits(left, byte):
    """Returns for each byte of a tile with `left` elements the bits that stand for elements."""
    return 0xFF >> (8 - tl.minimum(tl.maximum(left - byte * 8, 0), 8))


@triton.jit
def _bits(bytes_of_bits):
    """Unpacks int32 [BYTES] into bool [BYTES, 8]."""
    return ((bytes_of_bits[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0


@triton.jit
def _bytes(bits):
    """Packs bool [BYTES, 8] into int32 [BYTES]."""
    return tl.sum(bits.to(tl.int32) << tl.arange(0, 8)[None, :], axis=1)


@triton.jit
def _random(group, seed, tensor_id, step):
    """Returns the four Philox words of each group of entries, as csrc/core/masks/refresh_mask.h lays down."""
    key = (seed & 0xFFFFFFFF) | (tensor_id.to(tl.int64) << 32)
    high = (seed >> 32).to(tl.uint32)
    return tl.philox(key, group.to(tl.uint32), high, step.to(tl.uint32), (step >> 32).to(tl.uint32))


@triton.jit
def _below(r0, r1, r2, r3, limit):
    """Returns int32, whose bit i says whether word i is below `limit`, an int64 of 0 to 2^32."""
    low = limit.to(tl.uint32)
    first = (r0 < low).to(tl.int32) | ((r1 < low).to(tl.int32) << 1)
    second = (r2 < low).to(tl.int32) | ((r3 < low).to(tl.int32) << 1)
    return first | (second << 2) | tl.where(limit >> 32 != 0, 0xF, 0)


@triton.jit
def _frozen(mask, draw, first, left, byte, MASK: tl.constexpr):
    """Returns the mask of a tile as int32 [BYTES]; its tail bits may be anything."""
    if MASK == STORED:
        return tl.load(mask + first // 8 + byte, mask=byte * 8 < left, other=0).to(tl.int32)
    if MASK == DRAWN:
        seed, tensor_id, step, limit = tl.load(draw), tl.load(draw + 1), tl.load(draw + 2), tl.load(draw + 3)
        group = first // 4 + byte * 2
        a0, a1, a2, a3 = _random(group, seed, tensor_id, step)
        b0, b1, b2, b3 = _random(group + 1, seed, tensor_id, step)
        return _below(a0, a1, a2, a3, limit) | (_below(b0, b1, b2, b3, limit) << 4)
    return tl.full(byte.shape, 0xFF, tl.int32)


@triton.jit
def _wide(x):
    """Floats as the type they are compared and computed in; 16-bit floats are exact in float32."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _clip(x):
    """Clips x to [-1, 1] and keeps NaN, by one instruction where there is one."""
    if x.dtype == tl.float64:
        low = tl.where(x < -1, -1.0, x)
        return tl.where(low > 1, 1.0, low)
    return tl.clamp(x, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def forward(
    u,
    mask,
    draw,
    out,
    gate,
    rows,
    n,
    row_bytes,
    SURROGATE: tl.constexpr,
    MASK: tl.constexpr,
    GATE: tl.constexpr,
    BYTES: tl.constexpr,
):
    """u' of rows of n elements; with GATE also a gate bit an element.

    Args:
        u, out: floats [rows, n].
        mask: bytes [row_bytes], shared by the rows, for MASK == STORED.
        draw: int64 [4], for MASK == DRAWN, of one row: seed, tensor id, step, p * 2^32.
        gate: bytes [rows, row_bytes], whole words; for APPROX_SIGN it takes the mask instead.
    """
    row = _row()
    if row < rows:
        first, left, byte, element = _tile(n, BYTES)
        inside_row = element < left
        at = row * n + first
        frozen = _frozen(mask, draw, first, left, byte, MASK)
        x = tl.load(u + at + element, mask=inside_row, other=0.0)
        wide = _wide(x)
        sign = tl.where(wide < 0, -1.0, 1.0).to(wide.dtype)
        tl.store(out + at + element, tl.where(_bits(frozen), sign, _clip(wide)).to(x.dtype), mask=inside_row)
        if GATE:
            bits = frozen
            if SURROGATE != APPROX_SIGN:
                bits = _bytes(tl.abs(wide) <= 1)
                if SURROGATE == NONE:
                    bits = bits & ~frozen
                elif SURROGATE == IDENTITY:
                    bits = bits | frozen
            bits = (bits & _valid_bits(left, byte)).to(tl.uint8)
            tl.store(gate + row * row_bytes + first // 8 + byte, bits, mask=byte < row_bytes - first // 8)


@triton.jit
def gate_backward(grad, gate, out, rows, n, row_bytes, BYTES: tl.constexpr):
    """Writes grad where the gate's bit is 1, else 0; grad and out are [rows, n], gate is bytes [rows, row_bytes]."""
    row = _row()
    if row < rows:
        first, left, byte, element = _tile(n, BYTES)
        inside_row = element < left
        at = row * n + first
        passes = tl.load(gate + row * row_bytes + first // 8 + byte, mask=byte * 8 < left, other=0).to(tl.int32)
        g = tl.load(grad + at + element, mask=inside_row, other=0)
        tl.store(out + at + element, tl.where(_bits(passes), g, tl.zeros_like(g)), mask=inside_row)


@triton.jit
def backward(grad, u, mask, out, rows, n, SURROGATE: tl.constexpr, MASK: tl.constexpr, BYTES: tl.constexpr):
    """Writes the gradient from u itself, which APPROX_SIGN needs; the arguments are those of `forward`."""
    row = _row()
    if row < rows:
        first, left, byte, element = _tile(n, BYTES)
        inside_row = element < left
        at = row * n + first
        frozen = _bits(_frozen(mask, mask, first, left, byte, MASK))
        magnitude = tl.abs(_wide(tl.load(u + at + element, mask=inside_row, other=0.0)))
        g = tl.load(grad + at + element, mask=inside_row, other=0.0)
        zero = tl.zeros_like(g)
        clipped = tl.where(magnitude <= 1, g, zero)
        committed = zero
        if SURROGATE == IDENTITY:
            committed = g
        elif SURROGATE == CLIP:
            committed = clipped
        elif SURROGATE == APPROX_SIGN:
            committed = tl.where(magnitude <= 1, (_wide(g) * (2 - 2 * magnitude)).to(g.dtype), zero)
        tl.store(out + at + element, tl.where(frozen, committed, clipped), mask=inside_row)


@triton.jit(do_not_specialize=["one_below", "redraw_below", "seed", "tensor_id", "step"])
def refresh(mask, n, one_below, redraw_below, seed, tensor_id, step, WORDS: tl.constexpr):
    """Refreshes n entries in int32 words softly, in place; the limits are int64 of 0 to 2^32."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    words = tl.load(mask + word, mask=word * 32 < n, other=0)
    eighth = tl.arange(0, 8)[None, :]
    r0, r1, r2, r3 = _random(word[:, None] * 8 + eighth, seed.to(tl.int64), tensor_id, step.to(tl.int64))
    ones = tl.sum(_below(r0, r1, r2, r3, one_below.to(tl.int64)) << (4 * eighth), axis=1)
    redrawn = tl.sum(_below(r0, r1, r2, r3, redraw_below.to(tl.int64)) << (4 * eighth), axis=1)
    left = tl.minimum(tl.maximum(n - word * 32, 1), 32).to(tl.int32)
    valid = (tl.full(word.shape, 0xFFFFFFFF, tl.uint32) >> (32 - left).to(tl.uint32)).to(tl.int32, bitcast=True)
    tl.store(mask + word, ((words & ~redrawn) | ones) & valid, mask=word * 32 < n)


@triton.jit
def permute(mask, out, n, out_bytes, C, R, BYTES: tl.constexpr):
    """Bits of a [outer, C, R] mask in the order [outer, R, C]: bytes of `mask` to `out_bytes` bytes of `out`."""
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    to = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    within = to % (C * R)
    source = to - within + within % C * R + within // C
    found = tl.load(mask + source // 8, mask=to < n, other=0).to(tl.int32)
    bits = ((found >> (source % 8).to(tl.int32)) & 1) != 0
    tl.store(out + byte, _bytes(bits).to(tl.uint8), mask=byte < out_bytes)


@triton.jit
def _outside(x, low, high, channel, valid, LIMITS: tl.constexpr):
    """Returns whether x is below zero, or with LIMITS outside those of its channel."""
    if LIMITS:
        below = tl.load(low + channel, mask=valid, other=0.0)
        above = tl.load(high + channel, mask=valid, other=0.0)
        return ((x < below) | (x > above)) & valid
    return (x < 0) & valid


@triton.jit
def pack_rows(x, low, high, words, rows, n, row_bytes, K, LIMITS: tl.constexpr, BYTES: tl.constexpr):
    """Signs of rows of n elements, whole samples of K channels each, as bytes [rows, row_bytes]."""
    row = _row()
    if row < rows:
        first, left, byte, element = _tile(n, BYTES)
        valid = element < left
        value = tl.load(x + row * n + first + element, mask=valid, other=0.0).to(tl.float32)
        channel = (first + element) % K
        bits = _bytes(_outside(value, low, high, channel, valid, LIMITS)).to(tl.uint8)
        tl.store(words + row * row_bytes + first // 8 + byte, bits, mask=byte < row_bytes - first // 8)


@triton.jit
def unpack_rows(words, out, rows, n, row_bytes, BYTES: tl.constexpr):
    """Bits of rows of n elements, bytes [rows, row_bytes], as +1 and -1, floats [rows, n]."""
    row = _row()
    if row < rows:
        first, left, byte, element = _tile(n, BYTES)
        bits = tl.load(words + row * row_bytes + first // 8 + byte, mask=byte * 8 < left, other=0).to(tl.int32)
        sign = tl.where(_bits(bits), -1.0, 1.0).to(out.dtype.element_ty)
        tl.store(out + row * n + first + element, sign, mask=element < left)


@triton.jit
def pack_planes(x, low, high, words, rows, R, K, row_words, LIMITS: tl.constexpr, PIXELS: tl.constexpr):
    """Signs of planes [rows / row_words, K, R] as words [rows / row_words, R, row_words]: one word of each pixel."""
    row = _row()
    if row < rows:
        image, word = row // row_words, row % row_words
        pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
        channel = word * 32 + tl.arange(0, 32)
        valid = (pixel[:, None] < R) & (channel[None, :] < K)
        at = (image * K + channel[None, :]) * R + pixel[:, None]
        value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        bits = _outside(value, low, high, tl.broadcast_to(channel[None, :], at.shape), valid, LIMITS)
        packed = tl.sum(bits.to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)
        tl.store(words + (image * R + pixel) * row_words + word, packed, mask=pixel < R)


@triton.jit
def _pixel_tap(pixel, valid, tap, kernel_w, H, W, OH, OW, stride, padding, dilation):
    """Returns which input pixel output pixels read at a tap, and whether it lies inside; pairs are (height, width)."""
    ow, oh, image = pixel % OW, pixel // OW % OH, pixel // OW // OH
    h = oh * stride[0] - padding[0] + tap // kernel_w * dilation[0]
    w = ow * stride[1] - padding[1] + tap % kernel_w * dilation[1]
    return (image * H + h) * W + w, valid & (h >= 0) & (h < H) & (w >= 0) & (w < W)


@triton.jit
def max_pool(
    x,
    out,
    words,
    C,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    WORDS: tl.constexpr,
):
    """ANDs the words of each window: int32 [batch, H, W, C] become `words` words of [batch, OH, OW, C].

    The largest of some signs is -1, whose bit is 1, where all are; so padding is ones.
    """
    to = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    valid = to < words
    pixel, word = to // C, to % C
    pooled = tl.full((WORDS,), -1, tl.int32)
    for tap in range(KERNEL_H * KERNEL_W):
        source, inside = _pixel_tap(
            pixel,
            valid,
            tap,
            KERNEL_W,
            H,
            W,
            OH,
            OW,
            (stride_h, stride_w),
            (padding_h, padding_w),
            (dilation_h, dilation_w),
        )
        pooled &= tl.load(x + source * C + word, mask=inside, other=-1)
    tl.store(out + to, pooled, mask=valid)


@triton.jit
def binary_weight(
    x,
    words,
    scale,
    bias,
    out,
    pixels,
    C,
    O,
    I,
    group_outputs,
    taps,
    kernel_w,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Writes scale * (floats by signs of bits) + bias, an implicit product of matrices, 32 inputs of a tap at a time.

    The grid is (tiles of pixels, tiles of a group's outputs, groups).

    Args:
        x: floats [batch, H, W, C], C = groups * I.
        words: int32 [O, taps, ceil(I/32)], the portable order.
        scale, bias: float32 [O]; bias with BIAS only.
        out: floats [pixels, O], pixels = batch * OH * OW.
    """
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    group = tl.program_id(2)
    output = (group * group_outputs + n).to(tl.int64)
    valid_pixel, valid_output = pixel < pixels, n < group_outputs
    tap_words = (I + 31) // 32
    bit = tl.arange(0, 32)
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for tap in range(taps):
        source, inside = _pixel_tap(
            pixel,
            valid_pixel,
            tap,
            kernel_w,
            H,
            W,
            OH,
            OW,
            (stride_h, stride_w),
            (padding_h, padding_w),
            (dilation_h, dilation_w),
        )
        for word in range(tap_words):
            channel = word * 32 + bit
            at = source[:, None] * C + (group * I + channel)[None, :]
            value = tl.load(x + at, mask=inside[:, None] & (channel < I)[None, :], other=0.0)
            bits = tl.load(words + (output * taps + tap) * tap_words + word, mask=valid_output, other=0)
            signs = tl.where(((bits[None, :] >> bit[:, None]) & 1) != 0, -1.0, 1.0).to(value.dtype)
            # Not in tf32, which would round the activations.
            sums = tl.dot(value, signs, sums, input_precision="ieee")
    y = sums * tl.load(scale + output, mask=valid_output, other=0.0)[None, :]
    if BIAS:
        y = y + tl.load(bias + output, mask=valid_output, other=0.0)[None, :]
    to = pixel[:, None] * O + output[None, :]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=valid_pixel[:, None] & valid_output[None, :])
