"""The binary products, with each of their epilogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.ops.forms import AFFINE, AFFINE_SIGNS, THRESHOLD, Form
from stompp_kernels.ops.reference.bits import unpack_signs, unpack_weight_words
from stompp_kernels.ops.reference.epilogues import affine, affine_signs, threshold


def bgemm(a_words: Tensor, weight: Tensor, N: int, K: int) -> Tensor:
    a = unpack_signs(a_words, K, torch.float64)
    w = unpack_signs(unpack_weight_words(weight, (N, K), 1), K, torch.float64)
    return (a @ w.T).to(torch.int32)


def batched_bgemm(a_words: Tensor, b_words: Tensor, K: int) -> Tensor:
    a, b = (unpack_signs(words, K, torch.float64) for words in (a_words, b_words))
    return (a @ b.mT).to(torch.int32)


def bconv2d(
    x_words: Tensor,
    weight: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: int,
) -> Tensor:
    I = weight_shape[1]
    x = unpack_signs(x_words, I * groups, torch.float64).permute(0, 3, 1, 2)
    w = unpack_signs(unpack_weight_words(weight, weight_shape, groups), I, torch.float64).permute(0, 3, 1, 2)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(padding_value))
    y = F.conv2d(x, w, None, tuple(stride), 0, tuple(dilation), groups)
    return y.permute(0, 2, 3, 1).contiguous().to(torch.int32)


def _followed_by(finish: Callable[..., Any], form: Form, product: Callable[..., Tensor]) -> Callable[..., Any]:
    """Returns the op that gives the accumulator, and the operands behind the product's arguments, to ``finish``."""

    def op(*arguments: Any) -> Any:
        own, operands = form.split(form.filled(product.__name__, arguments))
        return finish(product(*own), *operands)

    op.__name__ = product.__name__ + form.suffix
    return op


bgemm_affine = _followed_by(affine, AFFINE, bgemm)
bgemm_affine_signs = _followed_by(affine_signs, AFFINE_SIGNS, bgemm)
bgemm_threshold = _followed_by(threshold, THRESHOLD, bgemm)
bconv2d_affine = _followed_by(affine, AFFINE, bconv2d)
bconv2d_affine_signs = _followed_by(affine_signs, AFFINE_SIGNS, bconv2d)
bconv2d_threshold = _followed_by(threshold, THRESHOLD, bconv2d)
