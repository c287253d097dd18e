"""Whether a packed network is slower than the float network that it was made from."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stompp_kernels.nn import BinaryConv1d, BinaryConv2d, BinaryConvTranspose2d, BinaryLayer, ProgressiveActivation
from stompp_kernels.progression.example_run import as_arguments

_ROUNDS = 15
_SECONDS = 0.5
# Medians of calls in turns differ by a few percent from run to run.
_SLOWER = 1.05


def warn_if_slower(model: nn.Module, packed: nn.Module, inputs: Any) -> None:
    """Warns where the packed network takes longer for these inputs than a float network of the model's layers.

    The two run in turns, with the threads that torch has now. The float network has torch's layers and ReLUs in the
    places of the model's binary layers and activations.

    Args:
        model: prepared; left as it is.
    """
    float_seconds, packed_seconds = _in_turns(_run(float_twin(model), inputs), _run(packed, inputs))
    if packed_seconds > _SLOWER * float_seconds:
        warnings.warn(
            f"the packed network is slower than a float one: {1e3 * packed_seconds:.3g} ms for these inputs where that "
            f"takes {1e3 * float_seconds:.3g} ms; with layers this small calls take the time: sk.package_packed leaves "
            "out Python's part, sk.explain(packed, inputs) says which layers take it, and prepare's keep leaves them "
            "in float",
            RuntimeWarning,
            stacklevel=3,
        )


@torch.no_grad()
def float_twin(model: nn.Module) -> nn.Module:
    """A copy of a prepared model in eval mode with torch's layers and ReLUs, of the same sizes and any weights."""
    twin = copy.deepcopy(model).eval()
    own = {layer.input_activation for layer in twin.modules() if isinstance(layer, BinaryLayer)}
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(twin.modules()):
        for name, module in list(parent._modules.items()):
            if isinstance(module, BinaryLayer):
                made.setdefault(module, _float_layer(module))
            elif isinstance(module, ProgressiveActivation) and module not in own:
                made.setdefault(module, nn.ReLU())
            if module in made:
                setattr(parent, name, made[module])
    return twin.eval()


def _float_layer(layer: Any) -> nn.Module:
    has_bias, device = layer.bias is not None, layer.weight.device
    if not isinstance(layer, BinaryConv2d):
        N, K = layer.weight.shape
        return nn.Linear(K, N, has_bias, device=device)
    channels = layer.in_channels, layer.out_channels
    if isinstance(layer, BinaryConvTranspose2d):
        reach = layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.groups
        return nn.ConvTranspose2d(*channels, *reach, bias=has_bias, device=device)
    kind: Any = nn.Conv1d if isinstance(layer, BinaryConv1d) else nn.Conv2d
    sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return kind(*channels, *sizes, bias=has_bias, device=device)


def _run(network: nn.Module, inputs: Any) -> Callable[[], Any]:
    args, kwargs = as_arguments(inputs)
    return lambda: network(*args, **kwargs)


@torch.no_grad()
def _in_turns(*sides: Callable[[], Any]) -> tuple[float, ...]:
    """The median seconds of a call of each side, after a first one that does not count."""
    samples: list[list[float]] = [[] for _ in sides]
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(samples[0]) <= _ROUNDS:
        for run, own in zip(sides, samples, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
    return tuple(statistics.median(own[1:]) for own in samples)
