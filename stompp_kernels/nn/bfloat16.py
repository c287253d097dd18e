"""Float layers of a packed network that multiply bfloat16 where the processor has instructions for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels import native
from stompp_kernels.ops import FloatWeight, conv2d_float
from stompp_kernels.ops.gradients import float_panels, transforms_are_active
from stompp_kernels.ops.reference import round_float_panels


class MayMultiplyBFloat16:
    """Base of the layers that :func:`in_float32` switches.

    Attributes:
        bfloat16: whether the layer multiplies bfloat16 where the processor does.
        rounded: the weights in bfloat16; None where float32 is multiplied.
    """

    bfloat16: bool
    rounded: Tensor | None
    _in_float32 = False

    @property
    def arithmetic(self) -> str:
        """What is multiplied on the CPU now, in words."""
        if self.rounded is None or not native.multiplies_bfloat16():
            return "float32"
        return "bfloat16" if self.rounded.shape[2] == 1 else "bfloat16, weights in two parts"

    @property
    def rounded_nbytes(self) -> int:
        """The bytes of the weights in bfloat16."""
        return 0 if self.rounded is None else self.rounded.numel() * self.rounded.element_size()


def bfloat16_layers(network: nn.Module) -> dict[str, MayMultiplyBFloat16]:
    """Returns the layers of a network that multiply bfloat16 where the processor does, by name."""
    found = {name: m for name, m in network.named_modules() if isinstance(m, MayMultiplyBFloat16)}
    return {name: layer for name, layer in found.items() if layer.bfloat16}


@contextlib.contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Lets those layers of a network run as torch's own in float32 inside a ``with`` block."""
    layers = bfloat16_layers(network).values()
    for layer in layers:
        layer._in_float32 = True
    try:
        yield
    finally:
        for layer in layers:
            layer._in_float32 = False


def rounded_panels(panels: Tensor, parts: int) -> Tensor | None:
    """Returns panels of float weights in bfloat16, or None where that is not multiplied."""
    if panels.device.type != "cpu" or panels.dtype is not torch.float32 or not native.multiplies_bfloat16():
        return None
    return round_float_panels(panels, parts)


class BFloat16Linear(nn.Linear, MayMultiplyBFloat16):
    """An nn.Linear for inference that multiplies bfloat16 where the processor has instructions for it.

    Inputs and weights are rounded to bfloat16 and sums are float32. Weights are rounded once; parameters and state
    dicts are those of nn.Linear. Where the processor has no such instructions, or the input is not float32 or on
    another device than the CPU, it is nn.Linear.

    Buffers: ``rounded``, the weights in bfloat16 where these are multiplied; state dicts leave it out.

    Example:
        >>> linear, x = nn.Linear(64, 10), torch.randn(4, 64)
        >>> with torch.no_grad():
        ...     torch.allclose(sk.nn.BFloat16Linear.of(linear)(x), linear(x), atol=0.05)
        True
    """

    bfloat16 = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("rounded", None, persistent=False)
        self.round_weight()

    @classmethod
    def of(cls, linear: nn.Linear) -> BFloat16Linear:
        """Makes the same layer from an nn.Linear, sharing its parameters."""
        with torch.device("meta"):
            twin = cls(linear.in_features, linear.out_features, linear.bias is not None)
        twin.weight, twin.bias = linear.weight, linear.bias
        twin.round_weight()
        return twin.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Multiplies floats [..., K], as nn.Linear does."""
        rounded = self.rounded
        if rounded is None or self._in_float32 or not self._can_round(input):
            return super().forward(input)
        # Rows are the pixels of an image, one below the other.
        rows = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)
        weight = FloatWeight(rounded, (self.out_features, self.in_features, 1, 1))
        y = conv2d_float(rows, weight).permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _can_round(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype is self.weight.dtype is torch.float32
            and x.numel() > 0
            and not transforms_are_active()
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
            and not torch.is_autocast_enabled("cpu")
        )

    @torch.no_grad()
    def round_weight(self) -> None:
        """Rounds the weights anew, as after they were changed."""
        w = self.weight
        self.rounded = rounded_panels(float_panels(w[:, :, None, None]), 1)

    def _apply(self, fn: Any, recurse: bool = True) -> BFloat16Linear:
        self.rounded = None
        super()._apply(fn, recurse)
        self.round_weight()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.round_weight()
