"""Moves shifts and PReLUs from behind a concatenation of channels to before it, where packed layers compute them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.chains import reads_signs
from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import is_addition, is_fixed_norm
from stompp_kernels.conversion.packing.steps import Step, step_of
from stompp_kernels.nn import BinaryConv2d, BinaryLayer

_MOVED = ("add", "prelu")  # of which each channel's values are the same in a map of any number of channels
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def move_before_concatenations(state: GraphState) -> None:
    """Rewrites cat(a, b) -> shift -> PReLU as cat(a -> shift -> PReLU, b -> shift -> PReLU), with the same values.

    It does so where each part comes from a committed convolution, perhaps through BatchNorm and a shortcut.
    """
    for node in list(state.graph.nodes):
        channels = _channels_of_parts(state, node)
        if channels is None:
            continue
        state.parts[node] = channels
        while (step := _only_step(state, node, sum(channels))) is not None:
            _move(state, node, step, channels)


def concatenated(node: fx.Node) -> list[fx.Node] | None:
    """The parts that a node concatenates along the second dimension; None where it does something else."""
    if node.op != "call_function" or node.target not in _CONCATENATIONS or not node.args:
        return None
    arguments = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    parts = arguments.pop("tensors")
    if arguments != {"dim": 1} or not isinstance(parts, (list, tuple)):
        return None
    found = [part for part in parts if isinstance(part, fx.Node)]
    return found if len(found) == len(parts) == len(set(found)) else None


def _channels_of_parts(state: GraphState, node: fx.Node) -> list[int] | None:
    """The channels of each part of a concatenation, if committed convolutions give them to it alone."""
    parts = concatenated(node) or []
    layers = [_layer_of(state, part) for part in parts]
    if not parts or any(layer is None or list(part.users) != [node] for part, layer in zip(parts, layers, strict=True)):
        return None
    return [layer.weight.shape[0] for layer in layers if layer is not None]


def _layer_of(state: GraphState, node: fx.Node) -> BinaryConv2d | None:
    """The committed convolution whose results a node gives, perhaps normalized, and added to something else."""
    module = state.module_of(node)
    if isinstance(module, BinaryLayer):
        return module if isinstance(module, BinaryConv2d) and module.committed else None
    if is_fixed_norm(module) and isinstance(node.args[0], fx.Node):
        return _layer_of(state, node.args[0])
    if is_addition(node):
        found = [_layer_of(state, side) for side in node.args if isinstance(side, fx.Node) and not is_addition(side)]
        return next((layer for layer in found if layer is not None), None)
    return None


def _only_step(state: GraphState, node: fx.Node, channels: int) -> Step | None:
    """The step that alone reads a concatenation, if it can be moved and its floats are read."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    step = None if user is None else step_of(state, user, channels, images=True)
    if step is None or step.source is not node or step.kind not in _MOVED:
        return None
    return None if all(reads_signs(state, reader) for reader in step.node.users) else step


def _move(state: GraphState, node: fx.Node, step: Step, channels: list[int]) -> None:
    assert step.constant is not None
    moved: Mapping[fx.Node, fx.Node] = {
        part: _apply(state, node, step, part, constant)
        for part, constant in zip(concatenated(node) or [], step.constant.split(channels), strict=True)
    }
    node.args = ([moved[part] for part in concatenated(node) or []], *node.args[1:])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "tensors"}
    step.node.replace_all_uses_with(node)
    state.graph.erase_node(step.node)


def _apply(state: GraphState, node: fx.Node, step: Step, part: fx.Node, constant: Tensor) -> fx.Node:
    """The step on one part of the channels."""
    name = f"{node.name}_{step.node.name}_{part.name}"
    if step.kind == "prelu":
        prelu = nn.PReLU(len(constant), device=constant.device)
        prelu.weight = nn.Parameter(constant.clone(), requires_grad=False)
        return state.add(node, name, prelu.eval(), part)
    with state.graph.inserting_before(node):
        shift = state.add_constant(name, constant.reshape(-1, 1, 1).clone())
        return state.graph.call_function(torch.add, (part, shift))
