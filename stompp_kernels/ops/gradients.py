"""Gradients of the ops: who has to give one, and what happens where a sign is taken.

A sum with binary weights, an affine epilogue and a float convolution are linear in each of their float inputs, and have
the gradients of those formulas. Packed signs are integers: no gradient passes them, so an op that packs floats which
require one refuses, unless :func:`signs_as_constants` says that the signs are to be constants.

Kernels under ``torch.ops.stompp`` know nothing of gradients; the functions of this folder take the way through
autograd only where :func:`gradient_wanted` says so, since that way costs more than a small product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from stompp_kernels.ops import reference
from stompp_kernels.ops.forms import AFFINE, LINEAR_OPERANDS
from stompp_kernels.ops.geometry import Geometry
from stompp_kernels.ops.reference import FLOAT_PANEL, unpack_float_weight
from stompp_kernels.ops.schemas import kernels_for

_ops = torch.ops.stompp
transforms_are_active = torch._C._are_functorch_transforms_active  # torch.func's
_grad_is_enabled = torch.is_grad_enabled
_constant_signs = False


@contextlib.contextmanager
def signs_as_constants() -> Iterator[None]:
    """Makes constants of the signs that are packed from floats inside this ``with`` block.

    The floats may require a gradient. In training a committed activation without a surrogate gives constants too:
    gradients pass around the packed layers that read signs, by a shortcut say, and not through them. The block holds
    for the whole process, all threads.

    Example:
        >>> x = torch.tensor([[0.5, -2.0]], requires_grad=True)
        >>> with signs_as_constants():
        ...     words = pack_signs(x)  # outside it raises RuntimeError
        >>> unpack_signs(words, 2)
        tensor([[ 1., -1.]])
    """
    global _constant_signs
    before, _constant_signs = _constant_signs, True
    try:
        yield
    finally:
        _constant_signs = before


def gradient_wanted(*inputs: Tensor | None) -> bool:
    """Returns whether an op on these floats has to go through autograd, or through a transform of torch.func."""
    if _grad_is_enabled():
        for x in inputs:
            if x is not None and x.requires_grad:
                return True
    # Repeats needs_function: to call it would cost as much as all else here.
    return transforms_are_active() or forward_ad._current_level >= 0


def needs_function() -> bool:
    """Returns whether a transform of torch.func runs, or forward differentiation.

    They see into torch's own ops and an autograd.Function that allows it, and into nothing else.
    """
    return transforms_are_active() or forward_ad._current_level >= 0


def _has_gradient(x: Tensor) -> bool:
    """Returns whether x requires a gradient or has a tangent, at any level of torch.func's transforms."""
    if x.requires_grad or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None):
        return True
    wrapped = transforms_are_active() and torch._C._functorch.is_functorch_wrapped_tensor(x)
    return wrapped and _has_gradient(torch._C._functorch.get_unwrapped(x))


def refuse_to_cut(op: str, **inputs: Tensor | None) -> None:
    """Raises where ``op`` would take the signs of floats that a gradient is wanted of.

    Args:
        op: its name, for the message.
        inputs: the floats that decide on the signs.
    """
    if _constant_signs or not torch.is_grad_enabled():
        return
    for name, x in inputs.items():
        if x is not None and _has_gradient(x):
            raise RuntimeError(
                f"{op} takes signs, which no gradient passes, and {name} requires a gradient: call it under "
                f"torch.no_grad(), give it {name}.detach(), or run it inside stompp_kernels.ops.signs_as_constants(), "
                "which lets gradients pass around the signs only"
            )


def _float32(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which products keep their type under autocast too."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else contextlib.nullcontext()


def _sum_rows(t: Tensor) -> Tensor:
    """Returns the sum over all but the last dimension."""
    return t.flatten(0, -2).sum(0) if t.dim() > 1 else t


def _signs_of(weight: Tensor, shape: list[int], groups: int) -> Tensor:
    """Returns +-1 weights, float32 [N, K] or [O, I/groups, kh, kw]."""
    w = kernels_for(weight).unpack_signs(
        _ops.unpack_binary_weight_words(weight, shape, groups), shape[1], torch.float32
    )
    return w if len(shape) == 2 else w.permute(0, 3, 1, 2)


class LinearBinaryWeight(torch.autograd.Function):
    """``torch.ops.stompp.linear_binary_weight`` with the gradients of x, scale and bias, computed in float32."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, N: int, K: int, scale: Tensor, bias: Tensor | None) -> Tensor:
        return kernels_for(x).linear_binary_weight.default(x, weight, N, K, scale, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.N, ctx.K, scale, _ = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[4] else None, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        need_x, _, _, _, need_scale, need_bias = ctx.needs_input_grad
        grad = grad.to(torch.float32)
        grad_x = grad_scale = None
        if need_x:
            with _float32(grad.device):
                grad_x = ((grad * scale) @ _signs_of(weight, [ctx.N, ctx.K], 1)).to(ctx.dtype)
        if need_scale:
            sums = LinearBinaryWeight.apply(
                x.to(torch.float32), weight, ctx.N, ctx.K, torch.ones_like(scale, requires_grad=False), None
            )
            grad_scale = _sum_rows(grad * sums)
        return grad_x, None, None, None, grad_scale, _sum_rows(grad) if need_bias else None


class Conv2dBinaryWeight(torch.autograd.Function):
    """``torch.ops.stompp.conv2d_binary_weight`` with the gradients of x, scale and bias, computed in float32."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        shape: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        # Dynamo counts these parameters, so that they cannot be *arguments: with a context in front they are one more.
        op = kernels_for(x).conv2d_binary_weight.default
        return op(x, weight, shape, stride, padding, dilation, groups, scale, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.conv, scale, _ = inputs
        ctx.x_shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[-2] else None, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        shape, *numbers = ctx.conv
        geometry = Geometry(*numbers)
        need_x, *_, need_scale, need_bias = ctx.needs_input_grad
        grad = grad.to(torch.float32)
        grad_x = grad_scale = None
        if need_x:
            with _float32(grad.device):
                w, scaled = _signs_of(weight, shape, geometry.groups), grad * scale.view(-1, 1, 1)
                grad_x = _conv2d_input_gradient(ctx.x_shape, w, scaled, geometry)
            grad_x = grad_x.to(ctx.dtype)
        if need_scale:
            ones = torch.ones_like(scale, requires_grad=False)
            sums = Conv2dBinaryWeight.apply(x.to(torch.float32), weight, *ctx.conv, ones, None)
            grad_scale = (grad * sums).sum((0, 2, 3))
        return grad_x, *[None] * 6, grad_scale, grad.sum((0, 2, 3)) if need_bias else None


def _conv2d_input_gradient(shape: torch.Size, w: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation = map(tuple, geometry[:3])
    return torch.nn.grad.conv2d_input(shape, w, grad, stride, padding, dilation, geometry.groups)


class Conv2dFloat(torch.autograd.Function):
    """``torch.ops.stompp.conv2d_float`` with the gradients of x, where it is floats, of the weights, scale and bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        shape: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        scale: Tensor | None,
        bias: Tensor | None,
        fused: bool,
    ) -> Tensor:
        return _ops.conv2d_float.default(x, weight, shape, stride, padding, dilation, scale, bias, fused)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.conv, scale, _, _ = inputs
        ctx.x_shape = x.shape
        _, need_weight, _, _, _, _, need_scale, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_weight or need_scale else None, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        shape, *numbers = ctx.conv
        need_x, need_weight, need_scale, need_bias = (ctx.needs_input_grad[i] for i in (0, 1, 6, 7))
        grad_x = grad_weight = grad_scale = None
        if need_scale:
            grad_scale = (grad * Conv2dFloat.apply(x, weight, *ctx.conv, None, None, False)).sum((0, 2, 3))
        grad_bias = grad.sum((0, 2, 3)) if need_bias else None
        if scale is not None:
            grad = grad * scale.view(-1, 1, 1)
        with _float32(grad.device):
            if need_x:
                w = unpack_float_weight(weight, shape)
                grad_x = _conv2d_input_gradient(ctx.x_shape, w, grad, Geometry(*numbers))
            if need_weight:
                if x.dtype is torch.int32:
                    x = kernels_for(x).unpack_signs(x, shape[1], torch.float32).permute(0, 3, 1, 2)
                grad_weight = float_panels(torch.nn.grad.conv2d_weight(x, shape, grad, *map(tuple, numbers)))
        return grad_x, grad_weight, None, None, None, None, grad_scale, grad_bias, None


def float_panels(w: Tensor) -> Tensor:
    """Returns weights [O, I, kh, kw] as :class:`stompp_kernels.ops.FloatWeight` holds them."""
    rows = F.pad(w.permute(0, 2, 3, 1).reshape(w.shape[0], -1), (0, 0, 0, -w.shape[0] % FLOAT_PANEL))
    return rows.reshape(-1, FLOAT_PANEL, rows.shape[1]).transpose(1, 2).contiguous()


_LINEAR = len(LINEAR_OPERANDS)


class _AffineProduct(torch.autograd.Function):
    """A binary product with an affine epilogue: the gradients of what it is linear in, computed in float32.

    Arguments: those of the product, then the operands of AFFINE.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (words, weight, *ctx.product), operands = AFFINE.split(inputs)
        _, _, residual, residual_scale, *_ = operands
        need_scale, _, need_residual, need_residual_scale, _ = AFFINE.split(ctx.needs_input_grad)[1][:_LINEAR]
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.save_for_backward(
            *((words, weight) if need_scale else (None, None)),
            residual if need_residual_scale else None,
            residual_scale if need_residual else None,
        )

    @staticmethod
    def gradients(ctx: Any, grad: Tensor, product: Any) -> tuple[Tensor | None, ...]:
        """Returns the gradients of all arguments; ``product`` is the op without an epilogue."""
        words, weight, residual, residual_scale = ctx.saved_tensors
        own, needs = AFFINE.split(ctx.needs_input_grad)
        grad = grad.to(torch.float32)
        result: list[Tensor | None] = [None] * len(needs)
        if needs[0]:
            result[0] = _sum_rows(grad * product(words, weight, *ctx.product))
        for i in (1, 4):
            result[i] = _sum_rows(grad) if needs[i] else None
        if needs[2]:
            result[2] = (grad if residual_scale is None else grad * residual_scale).to(ctx.residual_dtype)
        if needs[3]:
            result[3] = _sum_rows(grad * residual.to(torch.float32))
        return *[None] * len(own), *result


class BgemmAffine(_AffineProduct):
    """The product of :func:`stompp_kernels.ops.bgemm` with an affine epilogue."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _ops.bgemm_affine.default(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AffineProduct.gradients(ctx, grad, _ops.bgemm.default)


class Bconv2dAffine(_AffineProduct):
    """The convolution of :func:`stompp_kernels.ops.bconv2d` with an affine epilogue."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _ops.bconv2d_affine.default(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AffineProduct.gradients(ctx, grad, _ops.bconv2d.default)


def multiply_add(x: Tensor, scale: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """:func:`stompp_kernels.ops.reference.multiply_add` with its gradients."""
    if fused and gradient_wanted(x, scale, bias):
        return _FusedMultiplyAdd.apply(x.to(torch.float32), scale, bias)
    return reference.multiply_add(x, scale, bias, fused)


class _FusedMultiplyAdd(torch.autograd.Function):
    """x * scale + bias per last dimension, rounded once, with the gradients of the formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return reference.fused_multiply_add(x, scale, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, _ = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        return grad * scale, _sum_rows(grad * x), _sum_rows(grad)
