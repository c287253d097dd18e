"""Where a network's time goes: each layer and function, and the rest, adding up to the time of the whole."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.nn import BFloat16Attention, BinaryLayer, BinaryMatmul, FloatConv2d, PackedMatmul
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import FloatWeight, PackedWeight
from stompp_kernels.ops.reference import words_for
from stompp_kernels.progression.example_run import as_arguments

REST = "rest"
_AT_LEAST = 5  # calls that count, after a first one that does not


@dataclass(frozen=True)
class LayerTime:
    """One layer of a profile.

    Attributes:
        name: of the submodule; of a function ``function_`` and its node in the graph; :data:`REST` of what is left.
        kind: type of the module, or name of the function.
        ms: milliseconds a call of the network.
        share: of the network's time.
        operations: multiplications and additions; 0 for what is no product.
        binary: whether they are on bits.
    """

    name: str
    kind: str
    ms: float
    share: float
    operations: int
    binary: bool

    @property
    def gops(self) -> float:
        """Operations a nanosecond."""
        return self.operations / self.ms / 1e6 if self.ms > 0 else 0.0


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is timed as one piece."""
    return isinstance(module, (PackedLayer, BinaryLayer, BinaryMatmul)) or not any(True for _ in module.children())


def operations_of(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Multiplications and additions of a product that gave this output of these inputs; 0 for any other module."""
    if isinstance(module, (BinaryMatmul, PackedMatmul)):
        return 2 * inputs[0].shape[-1] * output.numel()
    if isinstance(module, BFloat16Attention):
        query, key = inputs[:2]
        return 2 * key.shape[-2] * (query.numel() + output.numel())
    weight = getattr(module, "weight", None)
    if isinstance(weight, PackedWeight):
        N, K = weight.shape[0], weight.unpacked_row_numel
    elif isinstance(module, FloatConv2d):
        N, K = module.out_channels, module.panels.shape[1]
    elif isinstance(module, (nn.Conv2d, nn.Linear, BinaryLayer)):
        assert isinstance(module.weight, Tensor)
        N, K = module.weight.shape[0], module.weight[0].numel()
    else:
        return 0
    output = output[0] if isinstance(output, tuple) else output  # floats and words
    outputs_in_words = output.dtype == torch.int32 and isinstance(weight, (PackedWeight, FloatWeight))
    return 2 * K * (output.numel() // words_for(N) * N if outputs_in_words else output.numel())


class _Clock:
    """Sums up the milliseconds of each piece within one call of the network."""

    def __init__(self) -> None:
        self.calls: list[dict[str, float]] = []
        self.kinds: dict[str, tuple[str, int, bool]] = {}

    def add(self, name: str, ms: float) -> None:
        self.calls[-1][name] = self.calls[-1].get(name, 0.0) + ms

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Times the forwards of the leaves; hooks would be timed with them, and would make each call slower."""
        clocked = []
        for name, module in network.named_modules():
            if name and is_leaf(module) and not _inside_leaf(network, name):
                module.forward = self._timed(name, module)
                clocked.append(module)
        try:
            yield
        finally:
            for module in clocked:
                del module.forward

    def _timed(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            output = forward(*args, **kwargs)
            self.add(name, 1e3 * (time.perf_counter() - start))
            if name not in self.kinds:
                packed = isinstance(getattr(module, "weight", None), PackedWeight)
                binary = packed or isinstance(module, (BinaryLayer, BinaryMatmul, PackedMatmul))
                kind = module.kind if isinstance(module, _Function) else type(module).__name__
                self.kinds[name] = kind, operations_of(module, args, output), binary
            return output

        return timed


def _inside_leaf(network: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    return any(is_leaf(network.get_submodule(".".join(parents[: end + 1]))) for end in range(len(parents)))


class _Function(nn.Module):
    """A function or method of a traced network as a module, so that the clock sees it."""

    def __init__(self, op: str, target: Any) -> None:
        super().__init__()
        self.op, self.target = op, target

    @property
    def kind(self) -> str:
        return self.target if self.op == "call_method" else getattr(self.target, "__name__", str(self.target))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


def _functions_as_modules(network: fx.GraphModule) -> fx.GraphModule:
    """The same network of the same modules, with one more for each function that it calls."""
    graph = copy.deepcopy(network.graph)
    clocked = fx.GraphModule(network, graph)
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            name = f"function_{node.name}"
            clocked.add_submodule(name, _Function(node.op, node.target))
            node.op, node.target = "call_module", name
    clocked.recompile()
    return clocked


@torch.no_grad()
def profile(network: nn.Module, inputs: Any, seconds: float = 2.0) -> list[LayerTime]:
    """The time of each layer of a network on the CPU, in order of execution, and :data:`REST`; together the network's.

    The rest of a call is what its layers leave: functions between modules (those of a traced graph have rows of their
    own), Python, and the clocks themselves, about a microsecond a layer. Times are means over the faster half of the
    calls: unlike medians they add up, and a call that another process disturbed is left out.

    Args:
        network: a packed network or any module; run eagerly.
        inputs: of one batch: a tensor, tuple of positional or dict of keyword arguments.
        seconds: to spend.
    """
    args, kwargs = as_arguments(inputs)
    clock = _Clock()
    clocked = _functions_as_modules(network) if isinstance(network, fx.GraphModule) else network

    def under_clocks() -> None:
        clock.calls.append({})
        start = time.perf_counter()
        clocked(*args, **kwargs)
        whole = 1e3 * (time.perf_counter() - start)
        clock.add(REST, whole - sum(clock.calls[-1].values()))

    with clock.on(clocked):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(clock.calls) <= _AT_LEAST:
            under_clocks()
    calls = sorted(clock.calls[1:], key=lambda pieces: sum(pieces.values()))
    quiet = calls[: (len(calls) + 1) // 2]
    clock.kinds[REST] = "functions and Python between the layers", 0, False
    means = {name: statistics.fmean(pieces[name] for pieces in quiet) for name in clock.kinds}
    total = sum(means.values())
    rows = []
    for name, (kind, operations, binary) in clock.kinds.items():
        rows.append(LayerTime(name, kind, means[name], means[name] / total, operations, binary))
    return rows
