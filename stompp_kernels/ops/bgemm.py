"""Binary matrix product on packed bits: dot(a, w) = K - 2*pop(a ^ w)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import check_words
from stompp_kernels.ops.epilogue import Affine, AffineSigns, Epilogue
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.gradients import BgemmAffine, gradient_wanted
from stompp_kernels.ops.pack import PackedWeight
from stompp_kernels.ops.reference import words_for

_ops = torch.ops.stompp
_bgemm_affine = _ops.bgemm_affine.default  # looked up once: small products take microseconds


def bgemm(a_words: Tensor, weight: PackedWeight, epilogue: Epilogue = None) -> Any:
    """Product of +-1 rows with +-1 weights.

    Args:
        a_words: int32 [..., ceil(K/32)], made by :func:`pack_signs`.
        weight: [N, K], made by :func:`pack_weight`.
        epilogue: :class:`Affine`, :class:`AffineSigns` or :class:`Threshold`; None keeps the accumulator.

    Returns:
        int32 [..., N]; with Affine its dtype; with Threshold or AffineSigns int32 words [..., ceil(N/32)], with the
        latter on request after float32 [..., N].

    Gradients reach the floats of an Affine: scale, bias, residual and the residual's own scale and bias.

    Raises:
        TypeError, ValueError: an argument's type, dtype or shape is not as above.
        RuntimeError: a float of AffineSigns requires a gradient, see :func:`stompp_kernels.ops.signs_as_constants`.
    """
    if not native.product_kernels_check(a_words):
        _check(a_words, weight, epilogue)
    try:
        N, K = weight.shape
        if epilogue is None:
            return _ops.bgemm.default(a_words, weight.data, N, K)
        if isinstance(epilogue, Affine):
            e = epilogue
            floats = e.floats_read()
            affine = BgemmAffine.apply if gradient_wanted(*floats) else _bgemm_affine
            return affine(a_words, weight.data, N, K, *floats, e.fused, e.dtype)
        if isinstance(epilogue, AffineSigns):
            s = epilogue
            if gradient_wanted(*s.floats_read()):
                return s.with_signs(bgemm(a_words, weight, s.affine()))
            return s.chosen(*_ops.bgemm_affine_signs.default(a_words, weight.data, N, K, *s.operands(), s.floats))
        t = epilogue
        return _ops.bgemm_threshold.default(a_words, weight.data, N, K, t.thresholds, t.flip_words, t.residual_words)
    except Exception:
        _check(a_words, weight, epilogue)  # says in this function's terms what the kernel refused
        raise


def _check(a_words: Tensor, weight: PackedWeight, epilogue: Epilogue) -> None:
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must be a PackedWeight made by pack_weight, got {type(weight).__name__}")
    if len(weight.shape) != 2:
        raise ValueError(f"weight must be packed from [N, K], got shape {list(weight.shape)}")
    N, K = weight.shape
    check_words("a_words", a_words, K)
    if epilogue is not None:
        epilogue.check((*a_words.shape[:-1], N))


@register_fake("bgemm")
def _(a_words, weight, N, K):
    return a_words.new_empty((*a_words.shape[:-1], N))


@register_fake("bgemm_affine")
def _(a_words, weight, N, K, scale, bias, residual, residual_scale, residual_bias, fused, dtype):
    return a_words.new_empty((*a_words.shape[:-1], N), dtype=dtype)


@register_fake("bgemm_affine_signs")
def _(a_words, weight, N, K, scale, bias, residual, residual_scale, residual_bias, fused, floats):
    shape = (*a_words.shape[:-1], N) if floats else (0,)
    return scale.new_empty(shape), a_words.new_empty((*a_words.shape[:-1], words_for(N)))


@register_fake("bgemm_threshold")
def _(a_words, weight, N, K, thresholds, flip_words, residual_words):
    return a_words.new_empty((*a_words.shape[:-1], words_for(N)))
