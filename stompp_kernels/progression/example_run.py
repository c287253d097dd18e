"""A model's run on sample input that leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; afterwards training flags, buffers and random states are as before.

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
