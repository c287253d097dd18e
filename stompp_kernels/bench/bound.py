"""A bound on a packed network's time with these kernels: its float layers, and its binary products at full speed.

It is taken from the committed model, not from what ``sk.convert`` makes of it: packing, unpacking, BatchNorms, shortcut
additions and Python are what a conversion may save, and count for nothing here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stompp_kernels.bench.sides import compiled, folding, on_device
from stompp_kernels.bench.subjects import call, device_of
from stompp_kernels.bench.turns import sample_on
from stompp_kernels.conversion.packing.float_convs import TO_SIGNS, has_kernel
from stompp_kernels.conversion.profile import is_leaf, operations_of
from stompp_kernels.models.registry import Inputs
from stompp_kernels.nn import BinaryLayer, BinaryMatmul, FloatConv2d, ProgressiveActivation, float_simulation
from stompp_kernels.ops import bgemm, pack_signs, pack_weight

# Folded into a product before or after them, or nothing at all in eval mode.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_FREE = (*_NORMS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, nn.ReLU, nn.ReLU6, nn.Hardtanh)
# Products of activations, which no layer holds.
_FLOAT_FUNCTIONS = (F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.softmax, F.softmax)
_LARGE = (1024, 1024, 4096)  # M, N, K: past the sizes at which calls and packing count


@dataclass(frozen=True)
class Bound:
    """Times in milliseconds of one batch.

    Attributes:
        float_layers: names of the layers and functions that stay in float.
        float_ms: their time, each alone at its shape, in the fastest of torch's eager, torch's compiled, and eager with
            this package's convolutions, which write bits where the packed network's do.
        binary_operations: multiplications and additions of the binary layers.
        bgemm_gops: speed of ``bgemm`` on a large product, in operations a nanosecond.
        packed_ms: time of the packed network, measured in turn with the float layers and that product.
        packed_over_bound: median of the turns' ratios: what slows the machine down for a while meets both sides.
    """

    float_layers: tuple[str, ...]
    float_ms: float
    binary_operations: int
    bgemm_gops: float
    packed_ms: float
    packed_over_bound: float

    @property
    def binary_ms(self) -> float:
        """The milliseconds of the binary operations at bgemm's speed."""
        return self.binary_operations / self.bgemm_gops / 1e6

    @property
    def ms(self) -> float:
        """The milliseconds of float layers and binary operations together."""
        return self.float_ms + self.binary_ms


class _Leftovers(nn.Module):
    """The float layers side by side, each on an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.layer_inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.functions: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self.names: list[str] = []  # of both
        self.layer_names: list[str] = []
        self.binary_operations = 0

    def forward(self, layer_inputs: list[Any], operands: list[Any]) -> list[Any]:
        results = [layer(*args, **kwargs) for layer, (args, kwargs) in zip(self.layers, layer_inputs, strict=True)]
        for (function, _, _), (args, kwargs) in zip(self.functions, operands, strict=True):
            results.append(function(*args, **kwargs))
        return results

    def run(self, function: Callable[..., Any]) -> Any:
        return function(self.layer_inputs, [(args, kwargs) for _, args, kwargs in self.functions])


class _FloatFunctions(TorchFunctionMode):
    """Notes the float functions that run outside of layers; ``inside`` counts the layers that are running."""

    def __init__(self, found: _Leftovers) -> None:
        super().__init__()
        self.found, self.inside = found, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FLOAT_FUNCTIONS and self.inside == 0:
            self.found.functions.append((func, args, kwargs))
            self.found.names.append(func.__name__)
        return func(*args, **kwargs)


@torch.no_grad()
def bound(
    model: nn.Module,
    inputs: Inputs,
    packed: nn.Module,
    run: Callable[[], Any],
    seconds: float = 2.0,
    compile: bool = True,
) -> Bound:
    """The bound of a committed model on inputs of one batch, measured now.

    Args:
        packed: the packed network.
        run: runs it on the same inputs; timed in turn with what the bound is made of.
        seconds: to spend.
        compile: also try the float layers compiled.
    """
    found = _leftovers(model, inputs)
    device, ours = device_of(inputs), _with_our_convolutions(found, packed)
    sides: dict[str, Callable[[], Any]] = {"packed": run, "bgemm": _large_product(device)}
    if found.names:
        sides["float"] = on_device(lambda: found.run(found), device)
        sides["float, our convolutions"] = on_device(lambda: found.run(ours), device)
    with folding():
        if found.names and compile:
            fast = compiled(found)
            sides["float compiled"] = on_device(lambda: found.run(fast), device)
        samples = sample_on(device, sides, seconds, in_a_row=3)
    median = {name: statistics.median(ms) for name, ms in samples.items()}
    fastest = min((name for name in samples if name.startswith("float")), key=median.__getitem__, default=None)
    M, N, K = _LARGE
    share = found.binary_operations / (2 * M * N * K)
    floats = samples[fastest] if fastest is not None else [0.0] * len(samples["packed"])
    turns = zip(samples["packed"], floats, samples["bgemm"], strict=True)
    return Bound(
        float_layers=tuple(found.names),
        float_ms=statistics.median(floats),
        binary_operations=found.binary_operations,
        bgemm_gops=2 * M * N * K / median["bgemm"] / 1e6,
        packed_ms=median["packed"],
        packed_over_bound=statistics.median(packed / (float_ms + share * ms) for packed, float_ms, ms in turns),
    )


def _large_product(device: torch.device) -> Callable[[], Any]:
    M, N, K = _LARGE
    a, w = (
        pack_signs(torch.randn(M, K, dtype=torch.float32, device=device)),
        pack_weight(torch.randn(N, K, dtype=torch.float32, device=device)),
    )
    return lambda: bgemm(a, w)


def _leftovers(model: nn.Module, inputs: Inputs) -> _Leftovers:
    """Runs the model once and notes the inputs of every float layer and function, and the binary operations."""
    found = _Leftovers()
    functions = _FloatFunctions(found)
    with float_simulation(), _noting(model, found, functions), functions:
        call(model, inputs)
    return found.eval()


def _with_our_convolutions(found: _Leftovers, packed: nn.Module) -> _Leftovers:
    """The same layers, those swapped that a packed network may swap, for its own where they read floats."""
    ours, modules = _Leftovers(), dict(packed.named_modules())
    ours.functions = found.functions
    for name, layer in zip(found.layer_names, found.layers, strict=True):
        to_bits = modules.get(f"{name}{TO_SIGNS}")
        if isinstance(to_bits, FloatConv2d) and to_bits.reads == "floats":
            layer = to_bits
        elif type(layer) is nn.Conv2d and has_kernel(layer):
            layer = FloatConv2d.of(layer)
        ours.layers.append(layer)
    return ours.eval()


@contextmanager
def _noting(model: nn.Module, found: _Leftovers, functions: _FloatFunctions) -> Iterator[None]:
    handles = []

    def entering(module: nn.Module, args: Any) -> None:
        functions.inside += 1

    def leaving(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str) -> None:
        functions.inside -= 1
        if isinstance(module, (BinaryLayer, BinaryMatmul)):
            found.binary_operations += operations_of(module, args, output)
        elif not isinstance(module, (*_FREE, ProgressiveActivation)):
            found.names.append(name)
            found.layer_names.append(name)
            found.layers.append(module)
            found.layer_inputs.append((tuple(map(_copy, args)), {key: _copy(value) for key, value in kwargs.items()}))

    for name, module in model.named_modules():
        if is_leaf(module) and name and not name.endswith(".input_activation"):
            handles.append(module.register_forward_pre_hook(entering))
            handles.append(module.register_forward_hook(partial(leaving, name=name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copy(value: Any) -> Any:
    """A tensor as it is now: a module behind may change it in place."""
    return value.clone() if isinstance(value, Tensor) else value
