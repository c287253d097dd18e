"""A copy of a model with what copy.deepcopy loses: ties of parameters by memory, and their hooks and attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.decoder_layers import keep_activations
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.parameter_use import extent, named_tensors


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy in which parameters that share memory still do, and keep their hooks and attributes."""
    memo: dict[int, Any] = {}
    copied = copy_module(model, memo)
    keep_activations(copied)
    copies = {(module, name): tensor for module, name, tensor in named_tensors(copied)}
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for module, name, original in named_tensors(model):
        twin = copies.get((module, name))
        if twin is not None and twin is not original:
            pairs.setdefault(id(original), (original, twin))
    for original, twin in pairs.values():
        if isinstance(original, nn.Parameter):
            adopt_attributes(original, twin, memo)
    _restore_ties(pairs.values())
    return copied


def adopt_attributes(source: Tensor, target: Tensor, memo: dict[int, Any] | None = None) -> None:
    """Gives a parameter the attributes and gradient hooks that users attached to another.

    Args:
        memo: as of ``copy.deepcopy``, to give it copies of them.
    """
    taken: Any = (
        vars(source),
        list((source._backward_hooks or {}).values()),
        list((getattr(source, "_post_accumulate_grad_hooks", None) or {}).values()),
    )
    attributes, hooks, accumulated = taken if memo is None else copy.deepcopy(taken, memo)
    vars(target).update(attributes)
    requires_grad = target.requires_grad
    if hooks or accumulated:
        target.requires_grad_(True)  # hooks can be registered only then
        for hook in hooks:
            target.register_hook(hook)
        for hook in accumulated:
            target.register_post_accumulate_grad_hook(hook)
        target.requires_grad_(requires_grad)


def _restore_ties(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Lets the copies of different tensors that view one storage do so too; deepcopy gives each parameter its own."""
    by_storage: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for original, twin in pairs:
        if (where := extent(original)) is not None:
            by_storage.setdefault(where[0], []).append((original, twin))
    for tied in by_storage.values():
        if len(tied) > 1:
            storage = tied[0][0].untyped_storage().clone()
            for original, twin in tied:
                view = torch.empty(0, dtype=original.dtype, device=original.device)
                place = (original.storage_offset(), original.size(), original.stride())
                twin.data = view.set_(storage, *place)


def shared_tensors(model: nn.Module) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """For each parameter or buffer, by (module, name), that shares memory with others: these others."""
    by_storage: dict[int, list[tuple[int, int, tuple[str, str]]]] = {}
    for module, name, tensor in named_tensors(model):
        if (where := extent(tensor)) is not None:
            by_storage.setdefault(where[0], []).append((where[1], where[2], (module, name)))
    shared: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for entries in by_storage.values():
        for start, stop, one in entries:
            others = [other for first, last, other in entries if other != one and start < last and first < stop]
            if others:
                shared[one] = others
    return shared
