"""What a node of a traced network computes of each value: BatchNorm, shift, scale, PReLU, clipping.

A step depends on the value and its channel alone, so a chain of steps can be folded into what a kernel does behind a
product: thresholds where only signs are read, or the constants of an epilogue.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import PRODUCTS, SUBTRACTIONS, has_hooks, is_addition, is_fixed_norm

_RISING = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
_IN_PLACE = (operator.iadd, "add_")
# Methods that make one constant of another.
_OF_CONSTANTS = ("reshape", "view", "unsqueeze", "squeeze", "flatten", "permute", "clamp", "neg", "abs", "detach")
_EXPANSIONS = ("expand", "expand_as")


@dataclass(frozen=True)
class Step:
    """A node that maps each value by a function of its channel.

    Attributes:
        node: the node.
        source: whose values it maps.
        kind: "norm", "add", "scale", "prelu" or "clip".
        function: the same for float32 [n, channels], with the network's own modules and roundings.
        monotone: whether the function rises or falls with the value everywhere, in every channel.
        constant: what is added, or the slopes of a PReLU: float32 [channels]; None elsewhere.
        channels_second: its channels are the second dimension, whatever the values' shape, as BatchNorm's are.
    """

    node: fx.Node
    source: fx.Node
    kind: str
    function: Callable[[Tensor], Tensor]
    monotone: bool = True
    constant: Tensor | None = None
    channels_second: bool = False


def step_of(state: GraphState, node: fx.Node, channels: int, images: bool) -> Step | None:
    """The step that a node is; None where it is none, or none of so many channels.

    Args:
        state: the network.
        node: any node.
        channels: of the values.
        images: the channels are the second of four dimensions, else the last.
    """
    source = node.args[0] if node.args else None
    module = state.module_of(node)
    if module is not None:
        return _of_module(node, source, module, channels, images) if isinstance(source, fx.Node) else None
    if node.target in (F.prelu, torch.prelu) and len(node.args) == 2 and isinstance(source, fx.Node):
        slopes = constant_of(state, node.args[1])
        return None if slopes is None else _prelu(node, source, slopes.flatten(), channels)
    arithmetic = is_addition(node) or _is_binary(node, SUBTRACTIONS) or _is_binary(node, PRODUCTS)
    return _of_arithmetic(state, node, channels, images) if arithmetic else None


def relu_of(state: GraphState, node: fx.Node, channels: int) -> Step | None:
    """The step that a ReLU is, as a PReLU whose slopes are 0: the same for all values but -inf.

    It may change its input, which must be no part of another tensor.
    """
    source, module = node.args[0] if node.args else None, state.module_of(node)
    by_function = node.target in (F.relu, torch.relu, "relu") and len(node.args) == 1 and not any(node.kwargs.values())
    is_relu = by_function if module is None else type(module) is nn.ReLU and not has_hooks(module)
    if not is_relu or not isinstance(source, fx.Node):
        return None
    return Step(node, source, "prelu", F.relu, constant=torch.zeros(channels, dtype=torch.float32))


def constant_of(state: GraphState, value: Any) -> Tensor | None:
    """The tensor that an argument is at every call, before it is expanded; None where it depends on the input."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float32)
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        changed = any(user.op == "call_method" and str(user.target).endswith("_") for user in value.users)
        found = None if changed else operator.attrgetter(str(value.target))(state.module)
        return found.detach() if isinstance(found, Tensor) and found.dtype is torch.float32 else None
    if value.op == "call_method" and value.args:
        constant = constant_of(state, value.args[0])
        if constant is None or value.target in _EXPANSIONS:
            return constant
        others = (*value.args[1:], *value.kwargs.values())
        if value.target in _OF_CONSTANTS and not any(isinstance(other, fx.Node) for other in others):
            return getattr(constant, str(value.target))(*value.args[1:], **value.kwargs)
    return None


def per_channel(constant: Tensor, channels: int, images: bool) -> Tensor | None:
    """A constant as float32 [channels]; None where it differs within a channel."""
    if constant.numel() == 1:
        return constant.reshape(1).expand(channels) if constant.dim() <= (4 if images else 1) else None
    place = 3 if images else 1
    if constant.numel() != channels or constant.dim() < place or constant.shape[-place] != channels:
        return None
    return constant.reshape(channels) if constant.dim() <= 4 else None


def _of_module(node: fx.Node, source: fx.Node, module: nn.Module, channels: int, images: bool) -> Step | None:
    if is_fixed_norm(module):
        if module.num_features != channels or (images and not isinstance(module, nn.BatchNorm2d)):
            return None

        def function(x: Tensor) -> Tensor:
            return module(x[:, :, None, None]).flatten(1) if isinstance(module, nn.BatchNorm2d) else module(x)

        return Step(node, source, "norm", function, channels_second=True)
    if has_hooks(module) or getattr(module, "inplace", False):
        return None
    if type(module) is nn.PReLU:
        return _prelu(node, source, module.weight.detach(), channels)
    if type(module) in _RISING and getattr(module, "negative_slope", 0.0) >= 0:
        return Step(node, source, "clip", module)
    return None


def _prelu(node: fx.Node, source: fx.Node, slopes: Tensor, channels: int) -> Step | None:
    if slopes.numel() not in (1, channels):
        return None
    constant, monotone = slopes.expand(channels), bool((slopes >= 0).all())
    second = slopes.numel() > 1
    return Step(node, source, "prelu", lambda x: F.prelu(x, constant), monotone, constant, channels_second=second)


def _of_arithmetic(state: GraphState, node: fx.Node, channels: int, images: bool) -> Step | None:
    """A value and a constant, added or multiplied."""
    subtracts, multiplies = _is_binary(node, SUBTRACTIONS), _is_binary(node, PRODUCTS)
    for source, other in (node.args,) if subtracts else (node.args, node.args[::-1]):
        constant = constant_of(state, other)
        values = None if constant is None else per_channel(constant, channels, images)
        if values is None or not isinstance(source, fx.Node) or constant_of(state, source) is not None:
            continue
        if node.target in _IN_PLACE and (source is not node.args[0] or list(source.users) != [node]):
            return None
        if multiplies:
            return Step(node, source, "scale", values.mul)
        added = -values if subtracts else values
        return Step(node, source, "add", added.add, constant=added)
    return None


def _is_binary(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    """Whether a node computes one of these functions of two values and nothing else."""
    return node.target in targets and len(node.args) == 2 and not node.kwargs
