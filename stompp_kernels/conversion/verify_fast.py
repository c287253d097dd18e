"""What bfloat16 changes in a packed network whose float layers are fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from stompp_kernels.conversion.sign_notes import noted_signs
from stompp_kernels.nn.bfloat16 import bfloat16_layers, in_float32
from stompp_kernels.progression.example_run import as_arguments

# Two factors are each rounded by 2^-9 at most, and mostly in different directions.
_TOLERANCE = 0.01  # of the norm of a layer's output, or share of its signs


@torch.no_grad()
def verify_fast(packed: nn.Module, inputs: Any) -> None:
    """Compares each fast layer with itself in float32, and warns of how much outputs and signs of the network change.

    Args:
        packed: made by ``sk.convert`` with ``float_layers="fast"``.
        inputs: a tensor, tuple of positional or dict of keyword arguments.

    Raises:
        ValueError: a layer is off by more than 1 % of its output's norm, or of its signs; names the layer.
    """
    args, kwargs = as_arguments(inputs)
    exact_signs: dict[str, Tensor] = {}
    changes: dict[str, tuple[int, int]] = {}
    with in_float32(packed), _watched_signs(packed, exact_signs.__setitem__):
        exact = packed(*args, **kwargs)

    def count(name: str, words: Tensor) -> None:
        changes[name] = _different_bits(words, exact_signs[name]), 32 * words.numel()

    with _watched_signs(packed, count), _compared_layers(packed):
        found = packed(*args, **kwargs)
    text = f"float_layers='fast' changes the outputs by {_relative_error(found, exact):.2g} of their norm"
    different, signs = (sum(counts) for counts in zip(*changes.values(), strict=True)) if changes else (0, 0)
    if signs:
        text += f" and {different / signs:.2g} of the signs of activations"
    warnings.warn(f"{text} on the inputs to verify; float_layers='exact' changes none", stacklevel=3)


def _relative_error(found: Any, exact: Any) -> float:
    """The largest of all tensors' differences, as a share of the norm of the exact one."""
    errors = [0.0]
    for y, wanted in zip(tree_leaves(found), tree_leaves(exact), strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            finite = wanted.isfinite()
            norm = wanted[finite].norm()
            errors.append(float((y - wanted)[finite].norm() / norm) if norm > 0 else 0.0)
    return max(errors)


def _different_bits(words: Tensor, others: Tensor) -> int:
    bits = torch.arange(32, dtype=torch.int32)
    return int(((words ^ others)[..., None] >> bits & 1).sum())


@contextmanager
def _watched_signs(packed: nn.Module, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls note(name, words) for each call of a module whose words are the signs of an activation of a traced network.

    A model that was converted layer by layer has no such notes.
    """
    nodes = packed.graph.nodes if isinstance(packed, fx.GraphModule) else ()
    names = {str(node.target) for node in nodes if node.op == "call_module" and noted_signs(node) is not None}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: note(name, output)

    handles = [packed.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _compared_layers(packed: nn.Module) -> Iterator[None]:
    """Runs each fast layer in float32 too, on the same input, and compares."""

    def hook(name: str) -> Callable[..., None]:
        def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            with in_float32(module):
                exact = type(module).forward(module, *args, **kwargs)
            if output.is_floating_point():
                error, what = _relative_error(output, exact), "of its output's norm"
            else:
                error, what = _different_bits(output, exact) / (32 * output.numel()), "of its signs"
            if not error <= _TOLERANCE:
                raise ValueError(
                    f"{name} multiplies bfloat16 and is off by {error:.2g} {what} on the inputs to verify, allowed is "
                    f"{_TOLERANCE:g}: convert with float_layers='exact'"
                )

        return compare

    layers = {name: packed.get_submodule(name) for name in bfloat16_layers(packed)}
    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
