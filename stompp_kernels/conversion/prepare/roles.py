"""What layers are for, as the flow of values shows it: projections of shortcuts, gates of channels, depthwise layers.

The model is run once on sample input. Each tensor is followed with the calls of layers that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed

_aten = torch.ops.aten
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Roles:
    """The names of layers by what they are for.

    Attributes:
        shortcuts: layers of kernel 1 that change the number of channels or the size, whose result is added to what
            other layers make of the same input.
        gates: layers between the average of an image's channels and the factors that the channels are multiplied by.
        depthwise: convolutions of as many groups as channels.
        origins: by name, where the input of a layer's first call comes from: the numbers of calls of layers, and below
            zero those of the network's inputs.
    """

    shortcuts: set[str] = field(default_factory=set)
    gates: set[str] = field(default_factory=set)
    depthwise: set[str] = field(default_factory=set)
    origins: dict[str, frozenset[int]] = field(default_factory=dict)

    def reading_alike(self, name: str) -> list[str]:
        """The layers that read what a layer reads, but for what no layer computes, such as positions that are added."""
        own = self.origins.get(name, frozenset())
        return [
            other
            for other, origins in self.origins.items()
            if all(origin < 0 for origin in own ^ origins) and (own <= origins or origins <= own)
        ]

    def notes(self, model: nn.Module) -> dict[str, str]:
        """What a report says of gates and depthwise layers, with their share of the model's weights."""
        total = sum(parameter.numel() for parameter in model.parameters())
        found = {}
        for names, role in ((self.depthwise, "depthwise"), (self.gates, "squeeze-and-excitation")):
            for name in names:
                share = sum(p.numel() for p in model.get_submodule(name).parameters()) / total
                found[name] = f"{role}, {share:.2%} of the weights"
        return found


def find_roles(model: nn.Module, example_inputs: Any, is_layer: Callable[[nn.Module], bool]) -> Roles:
    """Runs a float model on sample input, which leaves no trace, and says what its layers are for."""
    args, kwargs = as_arguments(example_inputs)
    flow = _Flow(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))

    def follow(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        def followed(*inputs: Any, **keywords: Any) -> Any:
            x = next((value for value in (*inputs, *keywords.values()) if isinstance(value, Tensor)), None)
            reads = flow.origins_of(x)  # before the forward, which may work in place
            result = forward(*inputs, **keywords)
            if x is not None and isinstance(result, Tensor):
                flow.note_call(name, module, x, reads, result)
            return result

        return followed if is_layer(module) else None

    with undisturbed(model), forwards(model, follow), flow:
        model(*args, **kwargs)
    return flow.roles


@dataclass(frozen=True)
class _LayerCall:
    name: str
    reads: frozenset[int]  # where its input comes from
    width: int  # numbers that it reads of one sample
    is_pointwise: bool
    changes_size: bool


class _Flow(TorchDispatchMode):
    """Follows each tensor with the numbers of the calls of layers, and of the inputs, that it comes from."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.roles = Roles()
        self._calls: list[_LayerCall] = []
        self._origins: Any = WeakTensorKeyDictionary()
        for index, value in enumerate(inputs):
            self._origins[value] = frozenset([-1 - index])

    def origins_of(self, value: Any) -> frozenset[int]:
        return self._origins.get(value, frozenset()) if isinstance(value, Tensor) else frozenset()

    def note_call(self, name: str, module: Any, x: Tensor, reads: frozenset[int], result: Tensor) -> None:
        is_conv = isinstance(module, _CONVS)
        sizes = slice(1, None) if is_conv else slice(-1, None)  # of one sample's channels and pixels, or features
        changes = x.shape[sizes] != result.shape[sizes]
        if is_conv and module.groups == module.in_channels > 1:
            self.roles.depthwise.add(name)
        weight = getattr(module, "weight", None)  # a subclass may have none
        pointwise = isinstance(weight, Tensor) and set(weight.shape[2:]) <= {1} and getattr(module, "groups", 1) == 1
        self.roles.origins.setdefault(name, reads)
        self._origins[result] = reads | {len(self._calls)}
        width = x.numel() // max(1, *x.shape[:1])
        self._calls.append(_LayerCall(name, reads, width, pointwise, changes))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if len(given) == 2 and func.overloadpacket in (_aten.add, _aten.add_):
            self._note_sum(*map(self.origins_of, given))
        elif len(given) == 2 and func.overloadpacket in (_aten.mul, _aten.mul_):
            self._note_product(*given)
            self._note_product(*reversed(given))
        origins = frozenset[int]().union(*map(self.origins_of, given))
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._origins[value] = origins
        return result

    def _layers(self, origins: frozenset[int]) -> list[_LayerCall]:
        return [self._calls[index] for index in sorted(origins) if index >= 0]

    def _note_sum(self, one: frozenset[int], other: frozenset[int]) -> None:
        for side, rest in ((one - other, other - one), (other - one, one - other)):
            calls, others = self._layers(side), self._layers(rest)
            if len(calls) != 1 or not (calls[0].is_pointwise and calls[0].changes_size):
                continue
            from_the_same = any(call.reads == calls[0].reads for call in others)
            alike = len(others) == 1 and others[0].is_pointwise  # none of the two is the shortcut
            if from_the_same and not alike:
                self.roles.shortcuts.add(calls[0].name)

    def _note_product(self, x: Tensor, factors: Tensor) -> None:
        if x.dim() < 3 or factors.dim() != x.dim() or factors.shape[1] != x.shape[1] or not x.numel():
            return
        sizes = zip(factors.shape[2:], factors.stride()[2:], strict=True)
        is_one_number = all(size == 1 or stride == 0 for size, stride in sizes)
        own, others = self.origins_of(x), self.origins_of(factors)
        if is_one_number and x[0, 0].numel() > 1 and own <= others:
            # A gate of tokens, of which each has many numbers, is another thing.
            self.roles.gates.update(call.name for call in self._layers(others - own) if call.width <= x.shape[1])
