"""Which channels of a module's input can never be negative, as the ops that made them say, whatever the model gets.

A batch of examples would not do: in it channels are positive by chance. So each tensor has a bound beside it, of its
shape: 0 where an entry cannot be negative, -1 where it may be. What moves and adds up values does the same to bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed
from stompp_kernels.progression.execution import PRESERVING, first_argument

_aten = torch.ops.aten

# Ops whose results are never negative, whatever they get.
_NEVER_NEGATIVE = {
    _aten.relu,
    _aten.relu_,
    _aten.abs,
    _aten.abs_,
    _aten.exp,
    _aten.exp_,
    _aten.sigmoid,
    _aten.sigmoid_,
    _aten.hardsigmoid,
    _aten.hardsigmoid_,
    _aten.softplus,
    _aten._softmax,
}

# Ops that are so from a least value on, which is their second argument.
_FROM_A_LEAST_VALUE = {
    _aten.hardtanh,
    _aten.hardtanh_,
    _aten.clamp,
    _aten.clamp_,
    _aten.clamp_min,
    _aten.clamp_min_,
}

# Ops that move values, or add them up with positive factors: what they make of bounds bounds what they make of values.
_MONOTONE = PRESERVING | {
    _aten.cat,
    _aten.stack,
    _aten.mean,
    _aten.sum,
    _aten.avg_pool1d,
    _aten.avg_pool2d,
    _aten._adaptive_avg_pool2d,
    _aten.upsample_linear1d,
    _aten.upsample_bilinear2d,
}

_PRODUCTS = {_aten.mul, _aten.mul_, _aten.div, _aten.div_}
_SUMS = {_aten.add, _aten.add_}


class _Bounds(TorchDispatchMode):
    """Keeps a bound for each tensor of which one is known."""

    def __init__(self) -> None:
        super().__init__()
        self._bounds: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id names a tensor only while the tensor lives

    def of(self, value: Any) -> Tensor | None:
        return self._bounds.get(id(value))

    def _filled(self, value: Any) -> Any:
        """Returns what stands for an argument where an op is applied to bounds."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        bound = self.of(value)
        return torch.full_like(value, -1) if bound is None else bound

    def _bound(self, packet: Any, func: Any, args: Any, kwargs: Any, result: Tensor) -> Any:
        """Returns the bounds of what an op gives; None where they are unknown."""
        if packet in _NEVER_NEGATIVE:
            return torch.zeros_like(result)
        if packet in _FROM_A_LEAST_VALUE:
            least = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
            return torch.zeros_like(result) if isinstance(least, (int, float)) and least >= 0 else None
        if not any(self.of(leaf) is not None for leaf in tree_leaves(args)):
            return None
        if packet in _MONOTONE:
            return func(*tree_map(self._filled, args), **kwargs)
        if packet in _PRODUCTS or (packet in _SUMS and not kwargs):
            sides = [self._filled(torch.as_tensor(side, dtype=result.dtype)) for side in args[:2]]
            numbers = [side for side in args[:2] if not isinstance(side, Tensor)]
            if any(number < 0 for number in numbers):
                return None
            known = [side for side, given in zip(sides, args, strict=False) if isinstance(given, Tensor)]
            return torch.minimum(known[0], known[-1]).expand_as(result)
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        bounds = None
        if outputs and isinstance(outputs[0], Tensor) and outputs[0].is_floating_point():
            bounds = self._bound(func.overloadpacket, func, args, kwargs, outputs[0])
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._forget(args[0])
        if bounds is not None:
            bounds = bounds if isinstance(bounds, (tuple, list)) else [bounds]
            for output, bound in zip(outputs, bounds, strict=True):
                self._bounds[id(output)] = bound
                self._alive.append(output)
        return result

    def _forget(self, changed: Tensor) -> None:
        """Forgets the bounds of a tensor that was changed in place, and of its views."""
        memory = changed.untyped_storage()._cdata
        for tensor in self._alive:
            if tensor.untyped_storage()._cdata == memory:
                self._bounds.pop(id(tensor), None)


def never_negative(model: nn.Module, example_inputs: Any, axes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Counts the channels of modules' inputs that can never be negative, however the model's inputs are.

    Args:
        model: run in eval mode, and left as it was.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for the model.
        axes: by a module's name, the dimension of its input that counts channels.

    Returns:
        By name, the number of such channels, in all runs of the module, and the number of channels.

    Example:
        >>> from stompp_kernels.progression.never_negative import never_negative
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(5, 2)
        ...
        ...     def forward(self, x):
        ...         return self.layer(torch.cat([x, x[:, :2].relu()], 1))
        >>> never_negative(Net(), torch.rand(4, 3), {"layer": 1})
        {'layer': (2, 5)}
    """
    args, kwargs = as_arguments(example_inputs)
    bounds = _Bounds()
    found: dict[str, Tensor] = {}

    def observe(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if name not in axes:
            return None
        axis = axes[name]

        def observed(*inputs: Any, **keywords: Any) -> Any:
            x = first_argument(inputs, keywords)
            bound = bounds.of(x)
            bound = torch.full_like(x, -1) if bound is None else bound
            never = (bound >= 0).movedim(axis, 0).reshape(x.shape[axis], -1).all(1)
            found[name] = found[name] & never if name in found else never
            return forward(*inputs, **keywords)

        return observed

    with forwards(model, observe), undisturbed(model), bounds:
        model(*args, **kwargs)
    return {name: (int(never.sum()), never.numel()) for name, never in found.items()}
