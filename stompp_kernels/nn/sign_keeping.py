"""Activations whose sign is their input's, in floating point too.

GELU, SiLU and Mish are negative where their input is. Far below zero their float32 values round to -0.0, whose sign
counts as +1, and from where on depends on how torch computes a value: one by one or by vectors, which the memory format
and the number of threads decide. Here what rounds to zero is a negative number too small to matter, so that a layer
that binarizes such an activation sees the sign of the activation's input: in training, in the float simulation and in
the packed network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def keep_negative(y: Tensor, negative: Tensor) -> Tensor:
    """Returns ``y`` with -1e-30 (of float16 the least normal number) where ``negative`` holds and y is not below 0.

    No gradient passes there: the functions' own is 0 to rounding.
    """
    least = max(torch.finfo(y.dtype).tiny, 1e-30)
    return torch.where(negative & (y >= 0), -least, y)


class SignKeepingGELU(nn.GELU):
    """An nn.GELU whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.GELU where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.GELU()(x) < 0).tolist(), (sk.nn.SignKeepingGELU()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Computes nn.GELU of ``input``, with a tiny negative number where it would round to zero from below."""
        return keep_negative(super().forward(input), input < 0)


class SignKeepingSiLU(nn.SiLU):
    """An nn.SiLU whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.SiLU where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.SiLU()(x) < 0).tolist(), (sk.nn.SignKeepingSiLU()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Computes nn.SiLU of ``input``, with a tiny negative number where it would round to zero from below."""
        negative = input < 0  # before the function works in place
        return keep_negative(super().forward(input), negative)


class SignKeepingMish(nn.Mish):
    """An nn.Mish whose output is negative wherever its input is, where rounding would give -0.0 too.

    ``sk.prepare`` puts it in the place of nn.Mish where a layer binarizes its output.

    Example:
        >>> x = torch.tensor([-200.0, -1.0, 2.0])
        >>> (nn.Mish()(x) < 0).tolist(), (sk.nn.SignKeepingMish()(x) < 0).tolist()
        ([False, True, False], [True, True, False])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Computes nn.Mish of ``input``, with a tiny negative number where it would round to zero from below."""
        negative = input < 0
        return keep_negative(super().forward(input), negative)


SIGN_KEEPING: dict[type[nn.Module], type[nn.Module]] = {
    nn.GELU: SignKeepingGELU,
    nn.SiLU: SignKeepingSiLU,
    nn.Mish: SignKeepingMish,
}
