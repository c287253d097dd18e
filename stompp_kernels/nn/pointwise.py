"""Which modules are functions of each value: what tensors they are given and give does not matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module has no state, and gives for each value what depends on that value alone.

    It is run on a few values, so it must be in the mode that counts.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return not module.training  # some warn of what they are tried on
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return False
    operations, x = _Operations(), torch.ones(2, 3, dtype=torch.float32, device="cpu")
    try:
        with torch.no_grad(), operations:
            result = module(x)
    except Exception:  # it takes no single tensor, or one of another shape
        return False
    return isinstance(result, Tensor) and result.shape == (2, 3) and operations.pointwise


class _Operations(TorchDispatchMode):
    """Notes whether all operations that run give for each entry what depends on that entry alone."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.pointwise &= torch.Tag.pointwise in func.tags
        return func(*args, **(kwargs or {}))
