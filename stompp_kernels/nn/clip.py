"""clip(u, -1, 1) with the gradient that the method defines, whatever version of torch runs it.

torch may choose the gradient of ``clamp`` at the bounds, and versions differ: 1 up to torch 2.13, 0 from 2.14 on.
Latents are clipped to exactly +-1 after each step, so with a 0 there they would stay for ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import FLOATS
from stompp_kernels.ops.gradients import needs_function
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.schemas import kernels_for


def clip(u: Tensor) -> Tensor:
    """Computes clip(u, -1, 1), whose gradient, given g, is ``g * (|u| <= 1)``: 1 at the bounds, 0 at NaN.

    Args:
        u: any floating-point dtype, shape and strides.

    Returns:
        A tensor of u's shape and dtype, to the bits of ``u.clamp(-1, 1)``.
    """
    if not (u.requires_grad and torch.is_grad_enabled()) and not needs_function():
        return u.clamp(-1, 1)
    if torch.compiler.is_compiling() or needs_function() or not _has_kernel(u):
        clipped = u.detach().clamp(-1, 1)
        return torch.where(clipped == u, u, clipped)  # where's gradient needs no choice: NaN equals nothing
    return _Clip.apply(u)


def _has_kernel(u: Tensor) -> bool:
    compiled = native.library is not None if u.device.type == "cpu" else kernels_for(u) is not torch.ops.stompp
    return compiled and u.dtype in FLOATS and type(u) in (Tensor, torch.nn.Parameter)


class _Clip(torch.autograd.Function):
    """The fused kernel under a mask of zeros: one pass, and one bit an element is kept for backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        soft = torch.zeros(words_for(u.numel()), dtype=torch.int32, device=u.device)
        out, gate = kernels_for(u).progressive_gated.default(u, soft, "none", False)
        ctx.save_for_backward(gate)
        ctx.strides = out.stride()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Gated.apply(grad, *ctx.saved_tensors, ctx.strides)


class _Gated(torch.autograd.Function):
    """``grad * gate``, which is linear in grad: its gradient is itself."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, gate: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(gate)
        ctx.strides = strides
        return kernels_for(grad).progressive_gate_backward.default(grad, gate, strides, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gated.apply(grad, *ctx.saved_tensors, ctx.strides), None, None
