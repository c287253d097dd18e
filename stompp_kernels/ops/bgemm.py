"""Binary matrix product on packed bits: dot(a, w) = K - 2*pop(a ^ w)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stompp_kernels.ops.checks import check_words
from stompp_kernels.ops.epilogue import Epilogue, check_operands, parts_of
from stompp_kernels.ops.fake_kernels import register_product_fakes
from stompp_kernels.ops.forms import Form
from stompp_kernels.ops.gradients import BgemmAffine
from stompp_kernels.ops.pack import PackedWeight
from stompp_kernels.ops.product import binary_product


def _check(own: tuple[Any, ...], form: Form, operands: tuple[Any, ...]) -> None:
    a_words, _, N, K = own
    check_words("a_words", a_words, K)
    check_operands(form, operands, (*a_words.shape[:-1], N))


bgemm_in_parts = binary_product("bgemm", BgemmAffine.apply, _check)


def bgemm(a_words: Tensor, weight: PackedWeight, epilogue: Epilogue = None) -> Any:
    """Multiplies +-1 rows by +-1 weights.

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

    Example:
        >>> a, w = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]])
        >>> bgemm(pack_signs(a), pack_weight(w))
        tensor([[ 1, -3]], dtype=torch.int32)
    """
    form, operands = parts_of(epilogue)
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must be a PackedWeight made by pack_weight, got {type(weight).__name__}")
    if len(weight.shape) != 2:
        raise ValueError(f"weight must be packed from [N, K], got shape {list(weight.shape)}")
    return bgemm_in_parts((a_words, weight.data, *weight.shape), form, operands)


register_product_fakes("bgemm")
