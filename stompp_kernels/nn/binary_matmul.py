"""A product of two activations: queries and keys, or attention and values, progressive and packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.activation import ProgressiveActivation
from stompp_kernels.nn.gives_floats import GivesFloats, narrowed
from stompp_kernels.nn.masked import Stage
from stompp_kernels.ops import batched_bgemm, pack_signs


class BinaryMatmul(nn.Module):
    """Multiplies two activations, each of which a :class:`ProgressiveActivation` of its own clips, and later binarizes.

    There are no weights: the masks of the two activations are one unit of a progression. ``sk.prepare`` leaves the
    module as it is, and ``sk.convert`` puts a :class:`PackedMatmul` in its place.

    Binarized attention has two: queries times keys, after BiBERT (Qin et al., ICLR 2022) and others; and attention
    times values, whose left side is {0, alpha} in BiT (Liu et al., NeurIPS 2022): ``alpha * round(clip(p / alpha, 0,
    1))`` is ``alpha * (sign(u) + 1) / 2`` of ``u = 2 * p / alpha - 1``, so that the rule of clip and sign holds for it.

    Args:
        zero_one: the left side becomes ``(u' + 1) / 2``, which is 0 or 1 once it is binarized.

    Attributes:
        left, right: the activations.
        execution_index: place in the order of execution, set by ``sk.prepare`` or ``sk.link``.

    Shape:
        [B, ..., M, K] and [B, ..., N, K] to [B, ..., M, N].

    Example:
        >>> product = sk.nn.BinaryMatmul()
        >>> product(torch.tensor([[[0.5, -2.0]]]), torch.tensor([[[1.0, 0.5], [-1.0, 3.0]]])).tolist()
        [[[0.0, -1.5]]]
        >>> product.commit()
        >>> product(torch.tensor([[[0.5, -2.0]]]), torch.tensor([[[1.0, 0.5], [-1.0, 3.0]]])).tolist()
        [[[0.0, -2.0]]]
    """

    def __init__(self, zero_one: bool = False, device: Any = None) -> None:
        super().__init__()
        self.zero_one = zero_one
        self.left, self.right = ProgressiveActivation(device=device), ProgressiveActivation(device=device)
        self.execution_index: int | None = None

    @property
    def activations(self) -> tuple[ProgressiveActivation, ProgressiveActivation]:
        """The activations of the left and the right side."""
        return self.left, self.right

    @property
    def stage(self) -> Stage:
        """The stage of the side that is less far."""
        return min(activation.stage for activation in self.activations)

    @property
    def committed(self) -> bool:
        """Whether both sides are committed."""
        return self.left.committed and self.right.committed

    def commit(self) -> None:
        """Freezes every entry of both sides, for good."""
        for activation in self.activations:
            activation.commit()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiplies the rows of ``a`` by those of ``b``.

        Raises:
            ValueError: the shapes do not fit.
        """
        check_rows(a, b)
        u = self.left(a)
        return ((u + 1) / 2 if self.zero_one else u) @ self.right(b).mT

    def extra_repr(self) -> str:
        return f"zero_one={self.zero_one}, stage={self.stage.name}"


class PackedMatmul(GivesFloats):
    """Multiplies the signs of two activations on bits: the inference twin of :class:`BinaryMatmul`.

    Both sides are packed at each call. With {0, 1} on the left the sum over k of ``(s + 1) / 2 * v`` is half the sum of
    ``s * v`` and ``v``, and the sum of ``v`` is the product with a row of +1.

    Args:
        zero_one: the left side is 0 where it is negative and 1 elsewhere, in place of -1 and +1.
        replaces: name of the module of the float network whose work it does.

    Shape:
        Floats [..., M, K] and [..., N, K] to floats [..., M, N], which are integers.

    Raises:
        ValueError: at a call: the shapes do not fit.
        RuntimeError: at a call: an input requires a gradient, which signs do not pass.

    Example:
        >>> a, b = torch.tensor([[[0.5, -2.0]]]), torch.tensor([[[1.0, 0.5], [-1.0, 3.0]]])
        >>> sk.nn.PackedMatmul()(a, b).tolist(), sk.nn.PackedMatmul(zero_one=True)(a, b).tolist()
        ([[[0.0, -2.0]]], [[[1.0, -1.0]]])
    """

    def __init__(self, zero_one: bool = False, replaces: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.zero_one, self.replaces = zero_one, replaces

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiplies the signs of the rows of ``a`` by those of ``b``; 0 and NaN have the sign +1."""
        check_rows(a, b)  # words would hide that K differs
        K = a.shape[-1]
        a_words, b_words = pack_signs(narrowed(a)), pack_signs(narrowed(b))
        sums = batched_bgemm(a_words, b_words, K)
        if self.zero_one:
            ones = torch.zeros_like(b_words[..., :1, :])
            sums = (sums + batched_bgemm(ones, b_words, K)) >> 1  # half of what is even
        return self._cast(sums.to(torch.float32))

    def extra_repr(self) -> str:
        return f"zero_one={self.zero_one}"


def check_rows(a: Tensor, b: Tensor) -> None:
    """Checks that a and b are [..., M, K] and [..., N, K].

    Raises:
        ValueError: they are not.
    """
    if a.dim() < 2 or a.dim() != b.dim() or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must be [..., M, K] and [..., N, K], got {list(a.shape)} and {list(b.shape)}")
