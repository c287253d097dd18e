"""Bits and words: the signs of floats, packed, and the portable order of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 32


def words_for(K: int) -> int:
    """Returns the number of words that hold K bits."""
    return (K + WORD_BITS - 1) // WORD_BITS


def pack_bits(bits: Tensor) -> Tensor:
    """Packs bool [..., K] into int32 [..., ceil(K/32)], LSB first, with a zero tail."""
    K = bits.shape[-1]
    padded = F.pad(bits.to(torch.int64), (0, words_for(K) * WORD_BITS - K))
    weights = torch.ones((), dtype=torch.int64, device=bits.device) << torch.arange(WORD_BITS, device=bits.device)
    words = (padded.unflatten(-1, (words_for(K), WORD_BITS)) * weights).sum(-1)
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def bits_from_words(words: Tensor, K: int) -> Tensor:
    """Unpacks int32 [..., ceil(K/32)] into bool [..., K]."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :K].bool()


def _plus_or_minus_one(negative: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns -1 where ``negative``, else +1. torch.where would first give bare numbers the default type."""
    one = torch.ones((), dtype=dtype, device=negative.device)
    return torch.where(negative, -one, one)


def sign(u: Tensor) -> Tensor:
    """Returns -1 where u < 0, else +1: sign(0) = sign(-0.0) = sign(NaN) = +1."""
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
