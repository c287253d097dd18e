"""What becomes of a binary product's int32 accumulator: kept, or one of the two types here.

The formulas stand in csrc/core/epilogue.h and, as code to read, in ops/reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stompp_kernels.ops.checks import SHORT_FLOATS, check_shape, check_tensor
from stompp_kernels.ops.reference import words_for


@dataclass(frozen=True, eq=False)
class Affine:
    """``scale[n] * acc + bias[n] (+ residual)`` in float32, each operation rounded on its own, stored as ``dtype``.

    Attributes:
        scale: float32 [N].
        bias: float32 [N].
        residual: float32, float16 or bfloat16 of the output's shape, or None.
        dtype: of the output: float32, float16 or bfloat16.
    """

    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def check(self, out_shape: Sequence[int]) -> None:
        check_tensor("scale", self.scale, (torch.float32,))
        check_tensor("bias", self.bias, (torch.float32,))
        check_shape("scale", self.scale, out_shape[-1:])
        check_shape("bias", self.bias, out_shape[-1:])
        if self.residual is not None:
            check_tensor("residual", self.residual, SHORT_FLOATS)
            check_shape("residual", self.residual, out_shape)
        if self.dtype not in SHORT_FLOATS:
            raise TypeError(f"dtype must be one of {', '.join(map(str, SHORT_FLOATS))}, got {self.dtype}")


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


Epilogue = Affine | Threshold | None
