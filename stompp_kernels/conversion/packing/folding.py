"""Folding of per-channel float arithmetic into what the kernels do after a product: thresholds, or scale and bias.

No fold derives a formula and trusts its rounding: each evaluates the very modules that the float network runs, on
integers or floats. For thresholds it bisects for the number where the sign changes, which is exact for any function
that is monotone in its input, as BatchNorm, scales and biases are in floating point too (rounding keeps order). Of
functions that may not be, such as GELU, it tries every integer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from stompp_kernels.ops import Affine, Threshold
from stompp_kernels.ops.reference import bits_from_words, multiply_add, pack_signs

_ALWAYS = torch.iinfo(torch.int32).max  # acc < this, whatever acc is
_NEVER = torch.iinfo(torch.int32).min
_PROBES = 1025  # accumulators on which candidates for scale and bias are compared
_CHUNK = 1 << 20  # values at once, where every accumulator of every channel is tried
_NEIGHBOURS = 4  # candidates for a scale: so many floats on either side of the slope


def fold_threshold(
    function: Callable[[Tensor, float | None], Tensor], K: int, channels: int, residual: bool, device: torch.device
) -> Threshold:
    """The thresholds for which ``(acc < threshold) ^ flip`` equals ``function(acc) < 0`` for every |acc| <= K.

    Args:
        function: maps integers as float32 [channels], and the residual's value (+1, -1, or None without), to float
            [channels]; monotone in each channel. What is folded of another has to pass :func:`holds_everywhere`.
        K: bound of the accumulator.
        residual: fold one row for a residual of +1 and one for -1.
    """
    rows = [_fold_row(function, value, K, channels, device) for value in ((1.0, -1.0) if residual else (None,))]
    flip = rows[0][1]
    if residual:
        # A row that is constant has no direction: it takes the other's. No residual turns a monotone function's.
        flip = torch.where(rows[0][2], rows[1][1], rows[0][1])
    thresholds = []
    for threshold, own_flip, constant in rows:
        turned = torch.where(threshold == _ALWAYS, _NEVER, _ALWAYS)
        thresholds.append(torch.where(constant & (flip != own_flip), turned, threshold))
    return Threshold(torch.stack(thresholds).to(torch.int32), _words(flip))


def holds_everywhere(threshold: Threshold, function: Callable[[Tensor, float | None], Tensor], K: int) -> bool:
    """Whether thresholds give the signs of a function for every |acc| <= K.

    Args:
        function: as of :func:`fold_threshold`, but of float32 [n, channels].
    """
    rows, channels = threshold.thresholds.shape
    flip = bits_from_words(threshold.flip_words, channels)
    acc = torch.arange(-K, K + 1, dtype=torch.int32, device=flip.device)[:, None]
    for row, value in zip(threshold.thresholds, (1.0, -1.0) if rows == 2 else (None,), strict=True):
        for some in acc.split(max(1, _CHUNK // channels)):
            found = function(some.to(torch.float32).expand(-1, channels), value) < 0
            if not torch.equal((some < row) ^ flip, found):
                return False
    return True


def _words(bits: Tensor) -> Tensor:
    return pack_signs(-bits.to(torch.float32))


def _fold_row(
    function: Callable[[Tensor, float | None], Tensor],
    residual: float | None,
    K: int,
    channels: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """(threshold, flip, constant) per channel, for one value of the residual."""

    def negative(acc: Tensor) -> Tensor:
        return function(acc.to(torch.float32), residual) < 0

    low = torch.full((channels,), -K, dtype=torch.int64, device=device)
    high = torch.full((channels,), K, dtype=torch.int64, device=device)
    at_low, at_high = negative(low), negative(high)
    constant = at_low == at_high
    flip = ~at_low & at_high
    _, high = _bisect(negative, at_low, low, high)
    threshold = torch.where(constant, torch.where(at_low, _ALWAYS, _NEVER), high)
    return threshold, flip, constant


def _bisect(negative: Callable[[Tensor], Tensor], at_low: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours between which each channel's sign changes, where it does; at_low is negative(low)."""
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        like_low = negative(middle) == at_low
        low, high = torch.where(like_low, middle, low), torch.where(like_low, high, middle)
    return low, high


def fold_function(function: Callable[[Tensor], Tensor], affine: Affine, K: int) -> Threshold | int:
    """The thresholds for which ``(acc < threshold) ^ flip`` equals ``function(acc * scale + bias) < 0``.

    It holds for every accumulator that K products of +-1 can add up to. torch may compute a function of each value in
    one of several ways, by the layout and the place of a value, which round differently: they must all give one sign.

    Args:
        function: maps float32 of any shape, value by value; it need not be monotone (GELU rounds to -0.0 far below 0).
        affine: its two operations are rounded each on its own.

    Returns:
        The thresholds, or the first channel whose sign changes more than once, or depends on the way.
    """
    assert not affine.fused
    acc = torch.arange(-K, K + 1, 2, device=affine.scale.device)
    thresholds, flips = [], []
    channels = max(1, _CHUNK // len(acc))
    for chunk, (scale, bias) in enumerate(zip(affine.scale.split(channels), affine.bias.split(channels), strict=True)):
        y = acc.to(torch.float32)[:, None] * scale + bias
        negative, *others = (function(x) < 0 for x in _in_layouts(y))
        changes = negative[1:] != negative[:-1]
        wrong = (changes.sum(0) > 1) | torch.stack([other != negative for other in others]).any(0).any(0)
        if bool(wrong.any()):
            return chunk * channels + int(wrong.int().argmax())
        constant = torch.where(negative[0], _ALWAYS, _NEVER)
        thresholds.append(torch.where(changes.any(0), acc[1 + changes.int().argmax(0)], constant))
        flips.append(~negative[0] & negative[-1])
    return Threshold(torch.cat(thresholds).to(torch.int32)[None], _words(torch.cat(flips)))


def _in_layouts(y: Tensor) -> Iterator[Tensor]:
    """The same values [n, m], to be computed by a library or vectors, by vectors, and one by one."""
    yield y.clone()  # the function may change what it is given
    yield y.t().clone(memory_format=torch.contiguous_format).t()
    yield torch.stack([y, y], -1)[..., 0]


def fold_limits(function: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(low, high) for which ``(x < low) | (x > high)`` equals ``function(x) < 0`` for every finite float32.

    Args:
        function: maps float32 [channels] to float [channels]; monotone in each channel.
    """

    def negative(order: Tensor) -> Tensor:
        return function(_float_at(order)) < 0

    largest = int(torch.tensor(torch.finfo(torch.float32).max, dtype=torch.float32).view(torch.int32))
    low = torch.full((channels,), -largest - 1, dtype=torch.int64, device=device)
    high = torch.full((channels,), largest, dtype=torch.int64, device=device)
    at_low, at_high = negative(low), negative(high)
    last, first = _bisect(negative, at_low, low, high)
    inf = torch.inf
    below = torch.where(at_low, torch.where(at_high, inf, _float_at(first)), -inf)
    above = torch.where(at_high, torch.where(at_low, -inf, _float_at(last)), inf)
    return below, above


def _float_at(order: Tensor) -> Tensor:
    """The float32 whose bits, as a signed integer that rises with the float, are ``order``: -1 is -0.0, 0 is 0.0."""
    bits = torch.where(order < 0, -(2**31) - 1 - order, order)
    return bits.to(torch.int32).view(torch.float32)


def fold_affine(function: Callable[[Tensor], Tensor], K: int, device: torch.device) -> Affine:
    """Scale and bias of ``function``, which is ``acc * scale + bias`` but for the way it rounds.

    Of the floats beside the slope, and of the two ways to round, it takes those that give the function's own values
    most often. One BatchNorm is met exactly (torch computes it with one fused multiply-add where it has that
    instruction); longer chains round more often and are met to a rounding of the last place.

    Args:
        function: maps integers as float32 [n, channels] to float32 [n, channels].
        K: bound of the accumulator.
    """

    def values(acc: Tensor) -> Tensor:
        return function(acc.to(torch.float32)[:, None])

    ends = values(torch.tensor([-K, 0, K], device=device))
    bias = ends[1]
    slope = ((ends[2].double() - ends[0].double()) / (2 * K)).float()
    probes = torch.linspace(-K, K, min(2 * K + 1, _PROBES), dtype=torch.float64, device=device).round()
    expected = values(probes)
    candidates = _neighbours(slope)
    best: tuple[int, Affine] | None = None
    for fused in (True, False):
        acc = probes[:, None].expand(expected.shape)
        hits = [(multiply_add(acc, scale, bias, fused) == expected).sum(0) for scale in candidates]
        most, which = torch.stack(hits).max(0)
        scale = torch.stack(candidates).gather(0, which[None])[0]
        if best is None or int(most.sum()) > best[0]:
            best = int(most.sum()), Affine(scale, bias.clone(), fused=fused)
    assert best is not None
    return best[1]


@torch.no_grad()
def fold_norm(norm: nn.BatchNorm2d, fused: bool) -> tuple[Tensor, Tensor] | None:
    """Scale and bias of a BatchNorm of float images, or None if it does not round as ``x * scale + bias`` does.

    Args:
        norm: in eval mode, with running statistics.
        fused: product and sum are rounded once, or each on its own.
    """
    unshifted = copy.deepcopy(norm)  # of which one is the scale: nothing is added to it
    assert norm.running_mean is not None
    assert unshifted.running_mean is not None
    unshifted.running_mean.zero_()
    if unshifted.bias is not None:
        unshifted.bias.zero_()
    ones = torch.ones(1, norm.num_features, 1, 1, dtype=torch.float32, device=norm.running_mean.device)
    scale, bias = unshifted(ones).flatten().clone(), norm(0 * ones).flatten().clone()
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, norm.num_features, dtype=torch.float32, generator=generator).to(ones.device)
    probes = torch.cat([probes, 100 * probes, 0.01 * probes])
    found = norm(probes[:, :, None, None]).flatten(1)
    return (scale, bias) if torch.equal(multiply_add(probes, scale, bias, fused), found) else None


def _neighbours(slope: Tensor) -> list[Tensor]:
    """The slope itself first: of equals it is taken."""
    candidates = [slope]
    for direction in (torch.inf, -torch.inf):
        value = slope
        for _ in range(_NEIGHBOURS):
            value = torch.nextafter(value, torch.full_like(value, direction))
            candidates.append(value)
    return candidates
