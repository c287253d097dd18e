"""A model's run on sample input that leaves no trace."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Makes positional and keyword arguments of a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):  # what a tokenizer of transformers gives is one, and no dict
        return (), dict(example_inputs)
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def plain(output: Any) -> Any:
    """A model's output with dicts in the place of objects of dataclasses, and tuples in that of named ones."""

    def is_object(value: Any) -> bool:
        named = isinstance(value, tuple) and hasattr(value, "_fields")
        return named or (is_dataclass(value) and not isinstance(value, (type, Mapping)))

    def plain_object(value: Any) -> Any:
        if not is_object(value):
            return value
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}

    return tree_map(plain_object, output, is_leaf=is_object)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Sets eval mode without gradients inside; afterwards training flags, buffers and random states are as before.

    The random states are Python's and torch's, of the CPU and of the CUDA devices that hold the model.
    """
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module._buffers, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    devices = {tensor.device.index for tensor in chain(model.parameters(), model.buffers()) if tensor.is_cuda}
    random_state = random.getstate()
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(random_state)
        for module, flag in training.items():
            module.training = flag
        for owner, name, buffer, values in buffers:
            if buffer is not None and buffer.requires_grad:  # changed in place by a run with gradient
                buffer = buffer.detach()
            owner[name] = buffer if buffer is None else buffer.copy_(values)


@contextmanager
def forwards(model: nn.Module, wrap: Callable[[str, nn.Module, Callable[..., Any]], Any]) -> Iterator[None]:
    """Lets every module run ``wrap(name, module, forward)`` inside in place of its forward; None leaves it as it is.

    Hooks would not do: modules of torch take other paths where there are hooks, and a call of ``module.forward`` runs
    none.
    """
    replaced: list[tuple[dict[str, Any], bool, Any]] = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # has no forward in Python
                continue
            forward = module.forward
            wrapped = wrap(name, module, forward)
            if wrapped is not None:
                store = vars(module)
                replaced.append((store, "forward" in store, store.get("forward")))
                store["forward"] = functools.wraps(forward)(wrapped)  # some models read their forward's signature
        yield
    finally:
        for store, own, forward in replaced:
            if own:
                store["forward"] = forward
            else:
                store.pop("forward", None)


def has_own_forward(module: nn.Module) -> bool:
    """Returns whether the module runs something else than its class's forward, set on the object itself."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward
