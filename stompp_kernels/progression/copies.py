"""A deep copy of a module, also of one that keeps results of autograd, as the hooks of torch's old weight_norm do."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy; of a result of autograd that a submodule has as an attribute it holds the values.

    Args:
        memo: as of ``copy.deepcopy``: what is not to be copied, by its id.
    """
    memo = {} if memo is None else memo
    for submodule in module.modules():
        for value in vars(submodule).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(module, memo)
