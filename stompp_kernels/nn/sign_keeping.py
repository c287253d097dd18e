"""Activations whose sign is their input's, in floating point too.

GELU, SiLU and Mish are negative where their input is. Far below zero their float32 values round to -0.0, whose sign
counts as +1, and from where on depends on how torch computes a value: one by one or by vectors, which the memory format
and the number of threads decide. Here what rounds to zero is a negative number too small to matter, so that a layer
that binarizes such an activation sees the sign of the activation's input: in training, in the float simulation and in
the packed network. The same is done for any other class of activations that is found to be such a function.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.nn.pointwise import is_pointwise


def keep_negative(y: Tensor, negative: Tensor) -> Tensor:
    """Returns ``y`` with -1e-30 (of float16 the least normal number) where ``negative`` holds and y is not below 0.

    No gradient passes there: the functions' own is 0 to rounding.
    """
    if isinstance(y, fx.Proxy):
        return y.tracer.create_proxy("call_function", keep_negative, (y, negative), {})
    least = max(torch.finfo(y.dtype).tiny, 1e-30)
    return torch.where(negative & (y >= 0), -least, y)


class SignKeeping(nn.Module):
    """Stands before an activation's class among a class's bases, and keeps the signs of what that one returns."""

    def forward(self, input: Tensor) -> Tensor:
        """Computes the activation of ``input``, with a tiny negative number where it would round to zero from below."""
        negative = input < 0  # before the function works in place
        return keep_negative(super().forward(input), negative)


def forget_signs(module: SignKeeping) -> None:
    """Gives a module back its activation's own class, which rounds to zero below zero too."""
    module.__class__ = type(module).__bases__[-1]


class SignKeepingGELU(SignKeeping, nn.GELU):
    """An nn.GELU whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.GELU where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.GELU()(x) < 0).tolist(), (sk.nn.SignKeepingGELU()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """


class SignKeepingSiLU(SignKeeping, nn.SiLU):
    """An nn.SiLU whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.SiLU where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.SiLU()(x) < 0).tolist(), (sk.nn.SignKeepingSiLU()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """


class SignKeepingMish(SignKeeping, nn.Mish):
    """An nn.Mish whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.Mish where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.Mish()(x) < 0).tolist(), (sk.nn.SignKeepingMish()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """


SIGN_KEEPING: dict[type[nn.Module], type[nn.Module]] = {
    nn.GELU: SignKeepingGELU,
    nn.SiLU: SignKeepingSiLU,
    nn.Mish: SignKeepingMish,
}
# Where a function that is negative below zero is far from rounding to zero, in float64, and where float32 may round so.
_SURELY_NEGATIVE = (-4.0, -2.0, -1.0, -0.5, -0.1, -0.01)
_PERHAPS_ZERO = (-1e4, -200.0, -100.0, -15.0, -8.0, -6.0, -1e-3, -1e-4, -1e-5, -1e-7)
_NOT_NEGATIVE = (0.0, 1e-7, 1e-4, 0.01, 0.5, 1.0, 4.0, 15.0, 200.0, 1e4)


def loses_signs(module: nn.Module) -> bool:
    """Whether a module is a function of each value with its input's sign, but for what float32 rounds to zero.

    Hardswish is not: it is zero below -3. Nor is ELU: no negative number rounds to zero.
    """
    if isinstance(module, (SignKeeping, nn.modules.dropout._DropoutNd)) or not is_pointwise(module):
        return False

    def values(numbers: tuple[float, ...], dtype: torch.dtype) -> Tensor:
        return module(torch.tensor(numbers, dtype=dtype, device="cpu"))

    try:
        with torch.no_grad():
            exact = bool((values(_SURELY_NEGATIVE, torch.float64) < 0).all())
            kept = bool((values(_NOT_NEGATIVE, torch.float32) >= 0).all())
            rounded = values(_PERHAPS_ZERO, torch.float32)
    except Exception:  # it takes no float64
        return False
    return exact and kept and bool((rounded == 0).any()) and bool((rounded <= 0).all())


@functools.cache
def sign_keeping_class(kind: Any) -> Any:
    """Returns the class that keeps the signs of an activation's class, for :func:`loses_signs` to be true of."""
    if kind in SIGN_KEEPING:
        return SIGN_KEEPING[kind]

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (kind,), *object.__reduce_ex__(self, protocol)[2:]

    made: Any = type(f"SignKeeping{kind.__name__}", (SignKeeping, kind), {"__reduce_ex__": reduce})
    made.__doc__ = f"A {kind.__name__} whose output is negative wherever its input is."
    return made


def _rebuild(kind: Any) -> nn.Module:
    made = sign_keeping_class(kind)
    return made.__new__(made)
