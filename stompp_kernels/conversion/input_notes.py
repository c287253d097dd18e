"""A note on a packed network of the inputs it was converted with, for torch.export to read its forward with.

Floats are noted by shape and type alone. Integers and masks stay as they are, for a forward may look at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

_KEY = "_stompp_inputs"


def note_inputs(packed: nn.Module, example_inputs: Any) -> None:
    """Notes inputs (a tensor, tuple or dict) on a packed network."""
    own = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    _notes_of(packed)[_KEY] = tree_map(_noted, own)


def noted_inputs(packed: nn.Module) -> Any:
    """Returns inputs like those that were noted, with normal floats; None where there are none."""
    generator = torch.Generator().manual_seed(0)
    device = next((t.device for t in (*packed.parameters(), *packed.buffers())), torch.device("cpu"))

    def value_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_meta:
            return value.to(device)
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(device)

    return tree_map(value_of, _notes_of(packed).get(_KEY))


def _noted(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("meta") if value.is_floating_point() else value.detach().clone()


def _notes_of(packed: nn.Module) -> dict[str, Any]:
    """Where a note stays with copies: a graph module copies its ``meta`` and no other attribute."""
    return packed.meta if isinstance(packed, fx.GraphModule) else packed.__dict__
