"""Products of the packed rows of two activations: of queries and keys, or of attention and values."""

from __future__ import annotations

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import check_batched_words
from stompp_kernels.ops.fake_kernels import register_fake

_ops = torch.ops.stompp


def batched_bgemm(a_words: Tensor, b_words: Tensor, K: int) -> Tensor:
    """Multiplies +-1 rows by +-1 rows, in batches: ``a @ b.mT`` of what the words stand for.

    Unlike :func:`bgemm`'s weight the right operand is packed in plain words, as activations are, and reordered for the
    kernel in each call.

    Args:
        a_words: int32 [..., M, ceil(K/32)], made by :func:`pack_signs`.
        b_words: int32 [..., N, ceil(K/32)], with the same sizes before N as ``a_words`` has before M.
        K: signs of a row, below 2^30.

    Returns:
        int32 [..., M, N]. It has no gradient.

    Raises:
        TypeError, ValueError: an argument's type, dtype or shape is not as above.

    Example:
        >>> a, b = torch.tensor([[[1.0, -1.0, 1.0]]]), torch.tensor([[[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]]])
        >>> batched_bgemm(pack_signs(a), pack_signs(b), 3)
        tensor([[[ 1, -3]]], dtype=torch.int32)
    """
    if not native.kernels_check(a_words):
        check_batched_words(a_words, b_words, K)
    try:
        return _ops.batched_bgemm.default(a_words, b_words, K)
    except Exception:
        check_batched_words(a_words, b_words, K)  # says in this function's terms what the kernel refused
        raise


@register_fake("batched_bgemm")
def _(a_words: Tensor, b_words: Tensor, K: int) -> Tensor:
    return a_words.new_empty((*a_words.shape[:-1], b_words.shape[-2]))
