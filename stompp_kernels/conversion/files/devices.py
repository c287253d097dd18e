"""Where a packed network lies, and its inputs."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def devices_of(packed: nn.Module) -> list[torch.device]:
    """Returns the devices of a network's tensors, each once, in the order of their names."""
    return sorted({tensor.device for tensor in chain(packed.parameters(), packed.buffers())}, key=str)


def in_words(devices: list[torch.device]) -> str:
    """Names devices."""
    return " and ".join(map(str, devices)) or "no device, as it has no tensors"


def check_input_devices(device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Checks that example inputs lie where the network does.

    Raises:
        ValueError: one does not; with its name.
    """
    for path, value in pytree.tree_leaves_with_path((args, kwargs)):
        if isinstance(value, Tensor) and value.device != device:
            raise ValueError(
                f"example_inputs must be on {device} as the network is, and {input_name(path)} is on {value.device}"
            )


def input_name(path: Any) -> str:
    """Names a leaf of (args, kwargs) by its path."""
    kind, *rest = path
    if not rest:
        return "an input"
    first, *within = rest
    name = f"input {first.idx}" if kind.idx == 0 else f"input {first.key!r}"
    return name + "".join(map(str, within))
