"""One packed module for all the places where a network calls one layer with the same constants behind it.

An encoder that is called twice, as in siamese networks, has each of its layers packed at both places. Memory and files
then hold what the places have in common once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.nodes import has_hooks
from stompp_kernels.conversion.sign_notes import noted_signs
from stompp_kernels.nn import PackBatchNorm
from stompp_kernels.nn.packed import PackedLayer


def share_equal_modules(packed: fx.GraphModule) -> None:
    """Lets nodes that call equal modules, packed from the same ones of the model, call the first of them.

    Args:
        packed: its graph is changed; modules that nothing calls any more are deleted.
    """
    first: dict[Any, list[str]] = {}
    for node in packed.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        module = packed.get_submodule(name)
        what = None if has_hooks(module) else _what_it_does(module, node)
        if what is None:
            continue
        known = first.setdefault(what, [])
        equal = next((other for other in known if _equal(module, packed.get_submodule(other))), None)
        if equal is None:
            known.append(name)
        else:
            node.target = equal
    packed.delete_all_unused_submodules()


def _what_it_does(module: nn.Module, node: fx.Node) -> Any:
    """What equal modules have in common but for their tensors; None for those that are not compared."""
    if isinstance(module, PackedLayer):
        settings = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "weight"}
        return type(module), repr(module), repr(sorted(settings.items())), module.dtype, tuple(module._buffers)
    if isinstance(module, PackBatchNorm):
        return type(module), repr(module), module.dtype, noted_signs(node)
    if isinstance(module, nn.BatchNorm2d):  # of layers that have nothing to do with each other they may be equal
        return type(module), repr(module), tuple(map(id, (*module.parameters(), *module.buffers())))
    return None


def _equal(a: nn.Module, b: nn.Module) -> bool:
    if a is b:
        return True
    return all(
        x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y))
        for x, y in zip(_tensors_of(a), _tensors_of(b), strict=True)
    )


def _tensors_of(module: nn.Module) -> list[Tensor | None]:
    weight = [module.weight.data] if isinstance(module, PackedLayer) else [*module._parameters.values()]
    return [*weight, *module._buffers.values()]
