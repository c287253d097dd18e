"""The progressive op, forward and backward, against the formula as PyTorch users write it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, in_turn, plain
from stompp_kernels import ops
from stompp_kernels.ops import reference


class Eager(torch.autograd.Function):
    """The formula with the clip surrogate."""

    @staticmethod
    def forward(ctx, u, frozen):
        ctx.save_for_backward(u)
        return torch.where(frozen, torch.where(u < 0, -1.0, 1.0), u.clamp(-1, 1))

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (u.abs() <= 1), None


def case(millions: int) -> Case:
    n = millions << 20

    def build() -> Sides:
        u, grad = torch.randn(n, requires_grad=True), torch.randn(n)
        mask = ops.pack_signs(torch.randn(n))
        frozen = reference.bits_from_words(mask, n)
        fast = torch.compile(Eager.apply, dynamic=False)

        def gradient(value: Tensor) -> Tensor:
            return torch.autograd.grad(value, u, grad)[0]

        def ours() -> Tensor:
            return gradient(ops.progressive(u, mask, "clip"))

        def eager() -> Tensor:
            return gradient(Eager.apply(u, frozen))

        return Sides(ours, {"eager": eager, "compiled": lambda: gradient(fast(u, frozen))}, eager)

    # u, u', g and the gradient; mask and gate are bits.
    return Case("progressive", "progressive", f"forward + backward, {millions}M", PLAIN, build, 0, 16 * n + 3 * n // 8)


def drawn_case(millions: int) -> Case:
    """A mask drawn anew in every call: PyTorch draws floats."""
    n = millions << 20

    def build() -> Sides:
        u, draw = torch.randn(n), ops.draw_state(0.5, 1, 2, 3)

        def formula(u: Tensor) -> Tensor:
            return torch.where(torch.rand_like(u) < 0.5, torch.where(u < 0, -1.0, 1.0), u.clamp(-1, 1))

        expected = reference.progressive_drawn(u, draw, "none")[0]
        return Sides(lambda: ops.progressive_drawn(u, draw), plain(formula, u), lambda: expected, draws=True)

    return Case("progressive_drawn", "progressive, drawn mask", f"forward, {millions}M", PLAIN, build, 0, 8 * n)


def cases() -> Iterator[Case]:
    for millions in (1, 4, 16):
        yield case(millions)
    yield drawn_case(4)


@in_turn(cases())
def test_progressive(turns, case, side):
    turns(case, side)
