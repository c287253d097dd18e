"""Whether a packed network is slower than the float network that it was made from."""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stompp_kernels.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLayer,
    BinaryMatmul,
    ProgressiveActivation,
)
from stompp_kernels.nn.sign_keeping import SignKeeping, forget_signs
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.example_run import as_arguments, undisturbed

_ROUNDS = 15
_SECONDS = 0.5
# Medians of calls in turns differ by a few percent from run to run.
_SLOWER = 1.05
# A short comparison, which nobody asked for, is a sequential test (Wald 1945) of how often the packed network is slower
# by more than that: in half of the pairs, or in 7 of 10. Of two networks of which neither is, it says so 1 time in
# 2,000, or 2 in 100 where time is out; on a busy machine a few pairs would say nothing.
_SLOWER_PAIR, _OTHER_PAIR = math.log(0.7 / 0.5), math.log(0.3 / 0.5)
_IS_SLOWER, _SEEMS_SLOWER, _IS_NOT = math.log(2000), math.log(8), math.log(0.1)
_LEAST_PAIRS = 9


def warn_if_slower(model: nn.Module, packed: nn.Module, inputs: Any, seconds: float | None = None) -> None:
    """Warns where the packed network takes longer for these inputs than a float network of the model's layers.

    The two run in turns, with the threads that torch has now. The float network has torch's layers and ReLUs in the
    places of the model's binary layers and activations, and GELUs and the like that keep no signs.

    Args:
        model: prepared; left as it is.
        seconds: about what a short comparison may take, which ends as soon as the calls so far say enough; None for a
            long one.
    """
    try:
        sides = _run(float_twin(model), inputs), _run(packed, inputs)
        with undisturbed(packed):
            pairs = _pairs(*sides) if seconds is None else _pairs_while_slower(seconds, *sides)
    except Exception as error:  # of the model's forward, which may ask for what binary layers alone have
        if seconds is None:
            raise
        warnings.warn(
            "the packed network's speed was not compared with a float one's: with torch's layers the model gives "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    if not pairs:
        return
    float_seconds, packed_seconds = (statistics.median(own) for own in zip(*pairs, strict=True))
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
    """A copy of a prepared model in eval mode with torch's layers and activations, of any weights."""
    twin = copy_module(model, {id(parameter): parameter for parameter in model.parameters()}).eval()
    for module in twin.modules():
        if isinstance(module, SignKeeping):
            forget_signs(module)
    own = {layer.input_activation for layer in twin.modules() if isinstance(layer, BinaryLayer)}
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(twin.modules()):
        for name, module in list(parent._modules.items()):
            if isinstance(module, BinaryLayer):
                made.setdefault(module, _float_layer(module))
            elif isinstance(module, ProgressiveActivation) and module not in own:
                made.setdefault(module, nn.Identity() if isinstance(parent, BinaryMatmul) else nn.ReLU())
            if module in made:
                setattr(parent, name, made[module])
    return twin.eval()


def _float_layer(layer: Any) -> nn.Module:
    options: dict[str, Any] = {"bias": layer.bias is not None, "dtype": layer.weight.dtype}
    options["device"] = "meta"  # to draw weights would take longer
    if not isinstance(layer, BinaryConv2d):
        N, K = layer.weight.shape
        made: nn.Module = nn.Linear(K, N, **options)
    elif isinstance(layer, BinaryConvTranspose2d):
        reach = layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.groups
        made = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, *reach, **options)
    else:
        kind: Any = nn.Conv1d if isinstance(layer, BinaryConv1d) else nn.Conv2d
        sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
        made = kind(layer.in_channels, layer.out_channels, *sizes, **options)
    made = made.to_empty(device=layer.weight.device)
    for parameter in made.parameters():
        parameter.fill_(0.01)
    return made


def _run(network: nn.Module, inputs: Any) -> Callable[[], Any]:
    args, kwargs = as_arguments(inputs)
    on_gpu = any(leaf.is_cuda for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

    def run() -> None:
        network(*args, **kwargs)
        if on_gpu:
            torch.cuda.synchronize()

    return run


def _seconds_of(*sides: Callable[[], Any]) -> tuple[float, ...]:
    """The seconds of one call of each side."""
    times = [time.perf_counter()]
    for run in sides:
        run()
        times.append(time.perf_counter())
    return tuple(end - start for start, end in itertools.pairwise(times))


def _pairs(*sides: Callable[[], Any]) -> list[tuple[float, ...]]:
    """The seconds of calls in turns, after a first pair that does not count."""
    pairs = [_seconds_of(*sides)]
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(pairs) <= _ROUNDS:
        pairs.append(_seconds_of(*sides))
    return pairs[1:]


def _pairs_while_slower(seconds: float, *sides: Callable[[], Any]) -> list[tuple[float, ...]]:
    """The same for a short comparison; none where the second side is not clearly slower than the first."""
    end = time.perf_counter() + seconds
    first, second = _seconds_of(*sides)
    if second <= first and time.perf_counter() > end:
        return []  # of large networks the first calls say enough
    pairs: list[tuple[float, ...]] = []
    evidence = 0.0
    while _IS_NOT < evidence < _IS_SLOWER and (
        time.perf_counter() < end or (evidence >= 0 and len(pairs) < _LEAST_PAIRS)
    ):
        first, second = _seconds_of(*sides)
        pairs.append((first, second))
        evidence += _SLOWER_PAIR if second > _SLOWER * first else _OTHER_PAIR
    return pairs if evidence >= _SEEMS_SLOWER else []
