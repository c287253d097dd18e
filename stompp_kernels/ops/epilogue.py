"""What becomes of a binary product's int32 accumulator: kept, or one of the three types here.

The formulas stand in csrc/core/product/epilogue.h and, as code to read, in ops/reference/epilogues.py. How each type
appears in ``torch.ops.stompp`` stands in ops/forms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stompp_kernels.ops.checks import SHORT_FLOATS, check_per_output, check_shape, check_tensor
from stompp_kernels.ops.forms import AFFINE, AFFINE_SIGNS, SUMS, THRESHOLD, Form
from stompp_kernels.ops.reference import words_for


@dataclass(frozen=True, eq=False)
class Affine:
    """``scale[n] * acc + bias[n] (+ residual)`` in float32, perhaps with an RPReLU, stored as ``dtype``.

    Attributes:
        scale: float32 [N].
        bias: float32 [N].
        residual: float32, float16 or bfloat16 of the output's shape, or None.
        dtype: of the output: float32, float16 or bfloat16.
        fused: product and sum are rounded once, as by torch's BatchNorm where it has an FMA; else each on its own.
        residual_scale, residual_bias: float32 [N], both or neither: the residual is
            ``residual_scale[n] * residual + residual_bias[n]``, rounded in the same way.
        rprelu: None, or float32 [3, N], rows *before*, *slope* and *after* of an RPReLU (Liu et al., ReActNet, 2020):
            with t = result + before[n] it gives (t > 0 ? t : t * slope[n]) + after[n], each operation rounded.

    Nothing is checked before a product runs with it: see :meth:`check`.

    Example:
        >>> a, w = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]])
        >>> epilogue = Affine(scale=torch.tensor([0.5, 2.0]), bias=torch.tensor([0.0, 1.0]))
        >>> bgemm(pack_signs(a), pack_weight(w), epilogue)  # the sums are [1, -3]
        tensor([[ 0.5000, -5.0000]])
    """

    form: ClassVar[Form] = AFFINE

    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    dtype: torch.dtype = torch.float32
    fused: bool = False
    residual_scale: Tensor | None = None
    residual_bias: Tensor | None = None
    rprelu: Tensor | None = None

    def operands(self) -> tuple[Any, ...]:
        """Returns the fields in the order in which ``torch.ops.stompp`` takes them.

        Example:
            >>> scale, bias, *rest = Affine(torch.ones(2), torch.zeros(2)).operands()
            >>> rest
            [None, None, None, False, torch.float32, None]
        """
        linear = self.scale, self.bias, self.residual, self.residual_scale, self.residual_bias
        return *linear, self.fused, self.dtype, self.rprelu

    def check(self, out_shape: Sequence[int]) -> None:
        """Checks the fields against the shape of a product's sums, [..., N].

        Raises:
            TypeError, ValueError: a field's type, dtype or shape is not as above.

        Example:
            >>> Affine(torch.ones(3), torch.zeros(3)).check((8, 2))
            Traceback (most recent call last):
            ValueError: scale must have shape [2], got [3]
        """
        _check_affine(self, out_shape)
        if self.dtype not in SHORT_FLOATS:
            raise TypeError(f"dtype must be one of {', '.join(map(str, SHORT_FLOATS))}, got {self.dtype}")


@dataclass(frozen=True, eq=False)
class AffineSigns:
    """The signs of what :class:`Affine` gives in float32 as packed bits, and on request the floats beside them.

    The shortcut of a Bi-Real block is carried on in float while the next layer reads bits; a downsample's is only read.

    Attributes:
        scale, bias, residual, fused, residual_scale, residual_bias, rprelu: as in :class:`Affine`.
        floats: also give the floats, float32 [..., N], before the words.
        limits: None, or float32 [2, N], rows *low* and *high*: a sign is -1 where the float is below low[n] or above
            high[n], as :func:`pack_outside` has it, and not where it is below 0.

    Example:
        >>> a, w = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]])
        >>> epilogue = AffineSigns(torch.ones(2), torch.zeros(2), residual=torch.tensor([[-2.0, 4.0]]), floats=True)
        >>> floats, words = bgemm(pack_signs(a), pack_weight(w), epilogue)  # the sums are [1, -3]
        >>> floats
        tensor([[-1.,  1.]])
        >>> unpack_signs(words, 2)
        tensor([[-1.,  1.]])
    """

    form: ClassVar[Form] = AFFINE_SIGNS

    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    fused: bool = False
    floats: bool = False
    residual_scale: Tensor | None = None
    residual_bias: Tensor | None = None
    rprelu: Tensor | None = None
    limits: Tensor | None = None

    def operands(self) -> tuple[Any, ...]:
        """Returns the fields in the order in which ``torch.ops.stompp`` takes them.

        Example:
            >>> scale, bias, *rest = AffineSigns(torch.ones(2), torch.zeros(2)).operands()
            >>> rest
            [None, None, None, False, False, None, None]
        """
        linear = self.scale, self.bias, self.residual, self.residual_scale, self.residual_bias
        return *linear, self.fused, self.floats, self.rprelu, self.limits

    def check(self, out_shape: Sequence[int]) -> None:
        """Checks the fields against the shape of a product's sums, [..., N].

        Raises:
            TypeError, ValueError: a field's type, dtype or shape is not as above.

        Example:
            >>> AffineSigns(torch.ones(2), torch.zeros(2), residual_scale=torch.ones(2)).check((8, 2))
            Traceback (most recent call last):
            ValueError: residual_scale and residual_bias must be given both or neither, got one of them
        """
        _check_affine(self, out_shape)
        if self.limits is not None:
            _check_rows("limits", self.limits, 2, out_shape[-1])


def _check_rows(name: str, values: Tensor, rows: int, N: int) -> None:
    check_tensor(name, values, (torch.float32,))
    check_shape(name, values, (rows, N))


def _check_affine(epilogue: Affine | AffineSigns, out_shape: Sequence[int]) -> None:
    N = out_shape[-1]
    check_per_output(N, scale=epilogue.scale, bias=epilogue.bias)
    if epilogue.residual is not None:
        check_tensor("residual", epilogue.residual, SHORT_FLOATS)
        check_shape("residual", epilogue.residual, out_shape)
    if (epilogue.residual_scale is None) != (epilogue.residual_bias is None):
        raise ValueError("residual_scale and residual_bias must be given both or neither, got one of them")
    if epilogue.residual_scale is not None:
        check_per_output(N, residual_scale=epilogue.residual_scale, residual_bias=epilogue.residual_bias)
    if epilogue.rprelu is not None:
        _check_rows("rprelu", epilogue.rprelu, 3, N)


@dataclass(frozen=True, eq=False)
class Threshold:
    """Packed bits: ``(acc < thresholds[r][n]) ^ flip[n]``, r the residual's bit, or 0 without a residual.

    Attributes:
        thresholds: int32 [1, N], or [2, N] with a residual.
        flip_words: int32 [ceil(N/32)], bit n set where channel n is flipped.
        residual_words: int32 of the output's shape [..., ceil(N/32)], or None.

    Example:
        >>> a, w = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0]])
        >>> thresholds = torch.tensor([[2, 0]], dtype=torch.int32)
        >>> flips = pack_signs(torch.tensor([1.0, -1.0]))  # flips the second output
        >>> words = bgemm(pack_signs(a), pack_weight(w), Threshold(thresholds, flips))  # the sums are [1, -3]
        >>> unpack_signs(words, 2)
        tensor([[-1.,  1.]])
    """

    form: ClassVar[Form] = THRESHOLD

    thresholds: Tensor
    flip_words: Tensor
    residual_words: Tensor | None = None

    def operands(self) -> tuple[Any, ...]:
        """Returns the fields in the order in which ``torch.ops.stompp`` takes them.

        Example:
            >>> words = torch.zeros(1, dtype=torch.int32)
            >>> Threshold(torch.zeros(1, 2, dtype=torch.int32), words).operands()[1] is words
            True
        """
        return self.thresholds, self.flip_words, self.residual_words

    def check(self, out_shape: Sequence[int]) -> None:
        """Checks the fields against the shape of a product's sums, [..., N].

        Raises:
            TypeError, ValueError: a field's type, dtype or shape is not as above.

        Example:
            >>> Threshold(torch.zeros(1, 2, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)).check((8, 2))
            Traceback (most recent call last):
            ValueError: flip_words must have shape [1], got [3]
        """
        N = out_shape[-1]
        rows = 1 if self.residual_words is None else 2
        check_tensor("thresholds", self.thresholds, (torch.int32,))
        check_tensor("flip_words", self.flip_words, (torch.int32,))
        check_shape("thresholds", self.thresholds, (rows, N))
        check_shape("flip_words", self.flip_words, (words_for(N),))
        if self.residual_words is not None:
            check_tensor("residual_words", self.residual_words, (torch.int32,))
            check_shape("residual_words", self.residual_words, (*out_shape[:-1], words_for(N)))


Epilogue = Affine | AffineSigns | Threshold | None


def parts_of(epilogue: Epilogue) -> tuple[Form, tuple[Any, ...]]:
    """Returns an epilogue's form and operands.

    Raises:
        TypeError: it is no epilogue.
    """
    if epilogue is None:
        return SUMS, ()
    if not isinstance(epilogue, (Affine, AffineSigns, Threshold)):
        allowed = "None, Affine, AffineSigns or Threshold"
        raise TypeError(f"epilogue must be {allowed}, got {type(epilogue).__name__}")
    return epilogue.form, epilogue.operands()


def epilogue_of(form: Form, operands: Sequence[Any]) -> Epilogue:
    """Returns the epilogue with these parts."""
    kind: Any = next((kind for kind in (Affine, AffineSigns, Threshold) if kind.form is form), None)
    return None if kind is None else kind(**dict(zip(form.names, operands, strict=True)))


def check_operands(form: Form, operands: Sequence[Any], out_shape: Sequence[int]) -> None:
    """Checks an epilogue's operands against the shape of a product's sums, [..., N]."""
    epilogue = epilogue_of(form, operands)
    if epilogue is not None:
        epilogue.check(out_shape)
