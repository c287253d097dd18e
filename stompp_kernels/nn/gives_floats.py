"""What the modules of a packed network that write floats share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.ops.checks import FLOATS


class GivesFloats(nn.Module):
    """A module whose constants stay float32 and int32, and which writes floats of the type that the network is cast to.

    Attributes:
        dtype: of the floats that it writes: float32, float16, bfloat16 or float64. It computes in float32.
    """

    dtype: torch.dtype = torch.float32

    def _apply(self, fn: Any, recurse: bool = True) -> GivesFloats:
        """Moves the constants to a device, and takes the type that other modules' parameters are cast to.

        Raises:
            TypeError: for another type.
        """
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.dtype not in FLOATS:
            raise TypeError(f"a packed network can be cast to {', '.join(map(str, FLOATS))}, got {probe.dtype}")
        self.dtype = probe.dtype
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(probe.device)
        return self

    def _cast(self, y: Tensor) -> Tensor:
        """Returns floats in the type that the network has."""
        return y if y.dtype is self.dtype else y.to(self.dtype)


def narrowed(x: Tensor) -> Tensor:
    """Returns floats of a type that the kernels read: float64 is rounded to float32, but for its sign."""
    if x.dtype is not torch.float64:
        return x
    y = x.to(torch.float32)
    # What rounds to zero keeps its sign, which is all that is read of most floats.
    return torch.where((x < 0) & (y == 0), -torch.finfo(torch.float32).tiny, y)


def type_of_parameters(network: nn.Module) -> torch.dtype:
    """Returns the type of a network's float parameters, to which it was cast; float32 for none or several."""
    found = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def cast_like_parameters(network: nn.Module) -> None:
    """Lets modules that hold no parameters write the type of those that do, as after a cast of the whole network."""
    dtype = type_of_parameters(network)
    for module in network.modules():
        if isinstance(module, GivesFloats):
            module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
