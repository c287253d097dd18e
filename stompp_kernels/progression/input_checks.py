"""Checks of the inputs that a user gives for a model to be run on, before it is."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stompp_kernels.progression.example_run import as_arguments, forwards


def check_inputs(name: str, inputs: Any, model: nn.Module) -> None:
    """Checks that what was given as the argument ``name`` is inputs, which fit the model's forward in number.

    Raises:
        TypeError: it is none, or the forward takes others.
    """
    allowed = f"{name} must be a tensor, or a tuple or dict of inputs, got"
    if isinstance(inputs, list):
        raise TypeError(
            f"{allowed} list of {len(inputs)}: give what the model is called with, the tensor alone where a batch is "
            "[inputs, labels], and a tuple for several inputs; ([...],) stands for one input that is a list"
        )
    if not isinstance(inputs, (Tensor, tuple, Mapping)):
        raise TypeError(f"{allowed} {type(inputs).__name__}{_numpy_hint(inputs)}")
    if isinstance(inputs, tuple) and inputs and all(isinstance(one, int) for one in inputs):
        raise TypeError(f"{allowed} the numbers {inputs}: for a shape give a tensor of it, torch.randn{inputs}")
    args, kwargs = as_arguments(inputs)
    for one in (*args, *kwargs.values()):
        if type(one).__module__ == "numpy" and type(one).__name__ == "ndarray":
            raise TypeError(f"{allowed} one that holds a numpy array{_numpy_hint(one)}")
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of code that is not Python
        return
    try:
        signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name} must fit the model's forward: {error}") from error


def _numpy_hint(value: Any) -> str:
    return "; torch.from_numpy makes a tensor of it" if type(value).__module__ == "numpy" else ""


def check_values(name: str, inputs: Any) -> None:
    """Checks that inputs hold values that tell something of a model.

    Warns where all floats are zero, for then signs and magnitudes say nothing.

    Raises:
        ValueError: one holds NaN.
    """
    args, kwargs = as_arguments(inputs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not x.is_meta]
    floats = [x for x in tensors if x.is_floating_point()]
    for x in floats:
        if bool(x.isnan().any()):
            raise ValueError(f"{name} must hold no NaN, got {int(x.isnan().sum())} in {x.numel()} entries")
    if floats and len(floats) == len(tensors) and not any(bool(x.any()) for x in floats):
        warnings.warn(
            f"{name} holds zeros only, with which signs and magnitudes of the layers' inputs cannot be checked: give "
            "a batch of real inputs, or torch.randn of its shape",
            RuntimeWarning,
            stacklevel=4,
        )


class NoBatchError(ValueError):
    """Inputs are a sample without a batch dimension."""


@contextmanager
def running_on(name: str, inputs: Any) -> Iterator[None]:
    """Inside, an error of the model's forward becomes one that says on what it ran.

    Raises:
        ValueError: the forward failed; its error is the cause.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, NoBatchError):
        raise
    except Exception as error:
        raise ValueError(f"the model fails on {name}, {described(inputs)}; {type(error).__name__}: {error}") from error


def described(inputs: Any) -> str:
    """Names the types and shapes of inputs."""
    args, kwargs = as_arguments(inputs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    each = [f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}" for x in tensors]
    return ", ".join(each) or "which holds no tensor"


def is_single(layer: nn.Module, x: Any) -> bool:
    """Whether a layer's input is one sample, without a batch dimension."""
    return isinstance(x, Tensor) and x.dim() <= 1 + len(getattr(layer, "kernel_size", ()))


@contextmanager
def batch_required(name: str, model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Inside, the first layer that runs refuses an input without a batch dimension.

    Raises:
        ValueError: it gets one; torch would take it for a single sample, and masks would lose a dimension.
    """
    first = True

    def observe(layer: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if not is_layer(module):
            return None

        def observed(*inputs: Any, **keywords: Any) -> Any:
            nonlocal first
            x: Any = next(iter((*inputs, *keywords.values())), None)
            if first and is_single(module, x):
                raise NoBatchError(
                    f"{name} must have a batch dimension: layer {layer!r} gets an input of shape {list(x.shape)}; "
                    "x.unsqueeze(0) is a batch of one sample"
                )
            first = False
            return forward(*inputs, **keywords)

        return observed

    with forwards(model, observe):
        yield
