"""Masks as bits, and their soft refresh."""

from __future__ import annotations

import torch
from torch import Tensor

from stompp_kernels.ops.checks import check_refresh, check_stream
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.reference import pack_bits
from stompp_kernels.ops.schemas import kernels_for


def refresh_mask_(mask_words: Tensor, n: int, p: float, r: float, seed: int, tensor_id: int, step: int) -> Tensor:
    """Draws each entry again with probability 1/r from Bernoulli(p), in place.

    The random stream is Philox4x32-10 (csrc/core/masks/refresh_mask.h says which word decides on which entry): it
    depends on (seed, tensor_id, step) alone, so any device, rank and number of threads draws the same bits.

    Args:
        mask_words: int32 [ceil(n/32)], contiguous.
        n: entries.
        p: probability of a redrawn entry to be frozen, in [0, 1].
        r: refresh period in steps, at least 1.
        seed: 64 bits, signed.
        tensor_id: 32 bits, one per mask.
        step: 0 to 2^63 - 1.

    Returns:
        ``mask_words``.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> mask = torch.zeros(32, dtype=torch.int32)  # 1024 entries
        >>> count_frozen(refresh_mask_(mask, 1024, p=1.0, r=1.0, seed=0, tensor_id=0, step=0))
        1024
    """
    check_refresh(mask_words, n, p, r, seed, tensor_id, step)
    kernels_for(mask_words).refresh_mask_(mask_words, n, float(p), float(r), seed, tensor_id, step)
    # The kernel writes through a pointer: autograd must learn of it, or a backward after it would use the new mask.
    torch.autograd.graph.increment_version(mask_words)
    return mask_words


def draw_state(p: float, seed: int, tensor_id: int, step: int) -> Tensor:
    """Returns what :func:`stompp_kernels.ops.progressive_drawn` draws its mask from: int64 [4] on the CPU.

    It is a tensor, so that under torch.compile a new p or step is new data and not a new graph. The values are the
    seed, the tensor's id, the step and p * 2^32; the random stream is that of :func:`refresh_mask_`.

    Args:
        p: probability of an entry to be frozen, in [0, 1].
        seed: 64 bits, signed.
        tensor_id: 32 bits, one per mask.
        step: 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> draw_state(p=0.5, seed=7, tensor_id=1, step=100)
        tensor([         7,          1,        100, 2147483648])
    """
    check_stream(p, seed, tensor_id, step)
    return torch.tensor([seed, tensor_id, step, int(p * 4294967296.0)])


def full_mask(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns a mask of n frozen entries on a device, int32 [ceil(n/32)]: all ones, zero tail.

    Args:
        n: entries, at least 0.
        device: where the words lie.

    Example:
        >>> full_mask(35)
        tensor([-1,  7], dtype=torch.int32)
    """
    return pack_bits(torch.ones(n, dtype=torch.bool, device=device))


def count_frozen(mask_words: Tensor) -> int:
    """Returns the number of frozen entries: the ones in ``mask_words``, int32 of any shape.

    Example:
        >>> count_frozen(full_mask(35))
        35
    """
    words = mask_words.to(torch.int64) & 0xFFFFFFFF
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return int((((words * 0x01010101) & 0xFFFFFFFF) >> 24).sum())


@register_fake("refresh_mask_")
def _(mask_words, n, p, r, seed, tensor_id, step):
    return None
