"""What becomes of a binary product's int32 accumulator: kept, or one of the three types here.

The formulas stand in csrc/core/product/epilogue.h and, as code to read, in ops/reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stompp_kernels.ops.checks import SHORT_FLOATS, check_shape, check_tensor
from stompp_kernels.ops.gradients import refuse_to_cut
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.schemas import kernels_for


class _AffineOperands:
    """The fields that both affine epilogues have, as the ops take them."""

    scale: Tensor
    bias: Tensor
    residual: Tensor | None
    fused: bool
    residual_scale: Tensor | None
    residual_bias: Tensor | None

    def floats_read(self) -> tuple[Tensor | None, ...]:
        """The tensors that the result is linear in."""
        return self.scale, self.bias, self.residual, self.residual_scale, self.residual_bias

    def operands(self) -> tuple[Tensor | bool | None, ...]:
        """As the ops take them."""
        return self.scale, self.bias, self.residual, self.residual_scale, self.residual_bias, self.fused


@dataclass(frozen=True, eq=False)
class Affine(_AffineOperands):
    """``scale[n] * acc + bias[n] (+ residual)`` in float32, stored as ``dtype``.

    Attributes:
        scale: float32 [N].
        bias: float32 [N].
        residual: float32, float16 or bfloat16 of the output's shape, or None.
        dtype: of the output: float32, float16 or bfloat16.
        fused: product and sum are rounded once, as by torch's BatchNorm where it has an FMA; else each on its own.
        residual_scale, residual_bias: float32 [N], both or neither: the residual is
            ``residual_scale[n] * residual + residual_bias[n]``, rounded in the same way.
    """

    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    dtype: torch.dtype = torch.float32
    fused: bool = False
    residual_scale: Tensor | None = None
    residual_bias: Tensor | None = None

    def check(self, out_shape: Sequence[int]) -> None:
        _check_affine(self, out_shape)
        if self.dtype not in SHORT_FLOATS:
            raise TypeError(f"dtype must be one of {', '.join(map(str, SHORT_FLOATS))}, got {self.dtype}")


@dataclass(frozen=True, eq=False)
class AffineSigns(_AffineOperands):
    """The signs of what :class:`Affine` gives in float32 as packed bits, and on request the floats beside them.

    The shortcut of a Bi-Real block is carried on in float while the next layer reads bits; a downsample's is only read.

    Attributes:
        scale, bias, residual, fused, residual_scale, residual_bias: as in :class:`Affine`.
        floats: also give the floats.
    """

    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    fused: bool = False
    floats: bool = False
    residual_scale: Tensor | None = None
    residual_bias: Tensor | None = None

    def check(self, out_shape: Sequence[int]) -> None:
        _check_affine(self, out_shape)

    def affine(self) -> Affine:
        """What gives the floats alone, with their gradient.

        Raises:
            RuntimeError: the signs would cut a gradient.
        """
        names = ("scale", "bias", "residual", "residual_scale", "residual_bias")
        refuse_to_cut("AffineSigns", **dict(zip(names, self.floats_read(), strict=True)))
        own = {"residual_scale": self.residual_scale, "residual_bias": self.residual_bias}
        return Affine(self.scale, self.bias, self.residual, torch.float32, self.fused, **own)

    def with_signs(self, floats: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What an op with this epilogue returns, of what :meth:`affine` gave."""
        return self.chosen(floats, kernels_for(floats).pack_signs.default(floats.detach()))

    def chosen(self, floats: Tensor, words: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What an op with this epilogue returns, of both results of its kernel."""
        return (floats, words) if self.floats else words


def _check_affine(epilogue: Affine | AffineSigns, out_shape: Sequence[int]) -> None:
    check_tensor("scale", epilogue.scale, (torch.float32,))
    check_tensor("bias", epilogue.bias, (torch.float32,))
    check_shape("scale", epilogue.scale, out_shape[-1:])
    check_shape("bias", epilogue.bias, out_shape[-1:])
    if epilogue.residual is not None:
        check_tensor("residual", epilogue.residual, SHORT_FLOATS)
        check_shape("residual", epilogue.residual, out_shape)
    if (epilogue.residual_scale is None) != (epilogue.residual_bias is None):
        raise ValueError("residual_scale and residual_bias must be given both or neither, got one of them")
    if epilogue.residual_scale is not None:
        check_tensor("residual_scale", epilogue.residual_scale, (torch.float32,))
        check_tensor("residual_bias", epilogue.residual_bias, (torch.float32,))
        check_shape("residual_scale", epilogue.residual_scale, out_shape[-1:])
        check_shape("residual_bias", cast(Tensor, epilogue.residual_bias), out_shape[-1:])


@dataclass(frozen=True, eq=False)
class Threshold:
    """Packed bits: ``(acc < thresholds[r][n]) ^ flip[n]``, r the residual's bit, or 0 without a residual.

    Attributes:
        thresholds: int32 [1, N], or [2, N] with a residual.
        flip_words: int32 [ceil(N/32)], bit n set where channel n is flipped.
        residual_words: int32 of the output's shape [..., ceil(N/32)], or None.
    """

    thresholds: Tensor
    flip_words: Tensor
    residual_words: Tensor | None = None

    def check(self, out_shape: Sequence[int]) -> None:
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
