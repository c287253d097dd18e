"""What the nodes of a traced network are."""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn

from stompp_kernels.nn.sign_keeping import SignKeeping, keep_negative

_ADDITIONS = (operator.add, operator.iadd, torch.add)
SUBTRACTIONS = (operator.sub, torch.sub, "sub")
PRODUCTS = (operator.mul, torch.mul, "mul")
ARITHMETIC = (*_ADDITIONS, "add", *SUBTRACTIONS, *PRODUCTS)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs more than the forward of its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def is_fixed_norm(module: nn.Module | None) -> TypeGuard[nn.BatchNorm1d | nn.BatchNorm2d]:
    """A BatchNorm that is a function of each channel; without running statistics it depends on the batch."""
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None and not has_hooks(module)


def with_the_same_signs(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """The input of an activation whose signs are its input's, so that who reads signs alone can read those."""
    source: Any = None
    if isinstance(module, SignKeeping) and not has_hooks(module):
        source = node.args[0]
    elif node.target is keep_negative:
        negative = node.args[1]
        if isinstance(negative, fx.Node) and negative.target is operator.lt and negative.args[1] == 0:
            source = negative.args[0]
    return source if isinstance(source, fx.Node) else None


def is_addition(node: fx.Node) -> bool:
    """Returns whether a node adds two values and does nothing else."""
    function = node.op == "call_function" and node.target in _ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    return (function or method) and len(node.args) == 2 and not node.kwargs


def is_expanded_needlessly(node: fx.Node) -> bool:
    """Whether a node expands a parameter to the shape of values that it is then added to, or multiplied by."""
    if node.op != "call_method" or node.target != "expand_as" or len(node.args) != 2 or node.kwargs:
        return False
    values = node.args[1]
    return all(
        user.target in ARITHMETIC and set(user.args) == {node, values} and not user.kwargs for user in node.users
    )


def is_max_pool(node: fx.Node, module: nn.Module | None) -> bool:
    """Returns whether a node is two-dimensional max-pooling, as a module without hooks or as a function."""
    if isinstance(module, nn.MaxPool2d):
        return not has_hooks(module)
    return node.target in (F.max_pool2d, torch.max_pool2d)


def pool_settings(node: fx.Node, module: nn.Module | None) -> dict[str, Any] | None:
    """The arguments of max-pooling; None if it returns indices too."""
    if module is not None:
        settings = {name: getattr(module, name) for name in (*_POOL_ARGUMENTS, "return_indices")}
    else:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
        names = (*_POOL_ARGUMENTS, "return_indices")
        settings = {**defaults, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    if settings.pop("return_indices"):
        return None
    settings["stride"] = settings["stride"] or settings["kernel_size"]
    return settings


def flat_name(node: fx.Node) -> str:
    """A submodule name for a node: its target's, at the top level."""
    return str(node.target).replace(".", "_") if node.op == "call_module" else node.name


def fresh_name(root: nn.Module, wanted: str) -> str:
    """A name for a new submodule of a network, whose own names may look like those given here."""
    taken = {name for name, _ in root.named_modules(remove_duplicate=False)}
    while wanted in taken:
        wanted += "_"
    return wanted
