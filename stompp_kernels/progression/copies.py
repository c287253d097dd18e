"""A deep copy of a module, also of one that keeps results of autograd, as the hooks of torch's old weight_norm do."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_NOT_COPIED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def copy_module(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy; of the results of autograd that a submodule keeps, in lists or objects too, it holds the values.

    Args:
        memo: as of ``copy.deepcopy``: what is not to be copied, by its id.
    """
    memo = {} if memo is None else memo
    for value in _tensors_in(module):
        if not value.is_leaf:
            memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(module, memo)


def _tensors_in(kept: Any) -> Iterator[Tensor]:
    """The tensors that ``copy.deepcopy`` finds in a value, its attributes and what they hold."""
    seen: set[int] = set()
    waiting = [kept]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _NOT_COPIED):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting.extend(value)
        elif isinstance(value, types.MethodType):
            waiting.append(value.__self__)
        waiting.extend(vars(value).values() if hasattr(value, "__dict__") else ())
