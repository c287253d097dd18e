"""What stands behind a committed layer in a traced network and can become part of its packed twin."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from stompp_kernels.conversion.packing.folding import fold_affine
from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import BATCH_NORMS, is_addition, is_fixed_norm
from stompp_kernels.conversion.packing.twins import own_affine
from stompp_kernels.nn import BinaryConv2d, BinaryLayer, ProgressiveActivation
from stompp_kernels.ops import Affine


@dataclass
class Chain:
    """layer -> BatchNorms (-> + residual -> BatchNorms), none of it read by anything else.

    Attributes:
        layer: the layer's node.
        steps: the nodes behind it, in order of execution.
        residual: what one of the steps adds, if one does.
    """

    layer: fx.Node
    steps: list[fx.Node]
    residual: fx.Node | None = None


def chain_to_signs(state: GraphState, node: fx.Node, activation: ProgressiveActivation) -> Chain | None:
    """The chain that ends in this committed activation and holds nothing but integers and their BatchNorms."""
    steps: list[fx.Node] = []
    residual = None
    current, user = node.args[0], node
    while isinstance(current, fx.Node) and list(current.users) == [user]:
        if current in state.layers:
            chain = Chain(current, steps[::-1], residual)
            return chain if _is_per_output(state, chain, activation) else None
        steps.append(current)
        if is_fixed_norm(state.module_of(current)):
            current, user = current.args[0], current
        elif residual is None and is_addition(current):
            sides = _sides(state, current, activation)
            if sides is None:
                return None
            user, (current, residual) = current, sides
        else:
            return None
    return None


def chain_of_floats(state: GraphState, node: fx.Node, layer: BinaryLayer, shortcuts: bool) -> tuple[Chain, fx.Node]:
    """The chain behind a layer as far as its twin can do the work, and the chain's last node.

    Args:
        state: the network.
        node: the layer's node.
        layer: the layer.
        shortcuts: whether the twin can add a float shortcut.
    """
    chain, end = Chain(node, []), node
    while chain.residual is None and len(end.users) == 1:
        (user,) = end.users
        if is_fixed_norm(state.module_of(user)) and _norm_is_per_output(layer):
            chain.steps.append(user)
        elif shortcuts and is_addition(user) and _shortcut(user, end) is not None:
            chain.residual = _shortcut(user, end)
        else:
            break
        end = user
    return chain, end


def replaced_modules(state: GraphState, chain: Chain) -> tuple[str, tuple[str, ...]]:
    """The name of a chain's layer, and the modules whose work the layer's twin does."""
    call = state.layers.get(chain.layer)
    name = str(chain.layer.target) if call is None else call.name
    return name, (name, *(str(step.target) for step in chain.steps if step.op == "call_module"))


def affine_of(state: GraphState, chain: Chain, layer: BinaryLayer) -> Affine:
    """The layer's own scales and bias, and the chain's BatchNorms, as one epilogue."""
    if not chain.steps:
        return own_affine(layer)
    with torch.no_grad():
        return fold_affine(arithmetic_of(state, chain, layer), layer.weight[0].numel(), layer.weight.device)


def arithmetic_of(state: GraphState, chain: Chain, layer: BinaryLayer) -> Callable[..., Tensor]:
    """A function that runs the layer's scales and the chain's own modules on float32 integers [n, channels]."""
    scale = own_affine(layer)
    images = isinstance(layer, BinaryConv2d)

    def function(acc: Tensor, residual: float | None = None) -> Tensor:
        y = acc * scale.scale
        value = y + scale.bias
        for step in chain.steps:
            module = state.module_of(step)
            if module is None:
                value = value + residual
            else:
                value = module(value[:, :, None, None]).flatten(1) if images else module(value)
        return value

    return function


def _is_per_output(state: GraphState, chain: Chain, activation: ProgressiveActivation) -> bool:
    """Whether the chain's channels are the layer's outputs, and its residual's words are in their order."""
    images = isinstance(state.layers[chain.layer].layer, BinaryConv2d)
    if chain.residual is not None and (chain.residual, images) not in state.bits:
        return False
    assert activation.mask_shape is not None
    # BatchNorm's channels are dimension 1, a linear layer's outputs the last.
    norms = any(isinstance(state.module_of(step), BATCH_NORMS) for step in chain.steps)
    return images or len(activation.mask_shape) == 1 or not norms


def _norm_is_per_output(layer: BinaryLayer) -> bool:
    """Whether the channels of a BatchNorm behind a layer are the layer's outputs.

    BatchNorm's channels are dimension 1, a linear layer's outputs the last.
    """
    if isinstance(layer, BinaryConv2d):
        return True
    shape = None if layer.activation is None else layer.activation.mask_shape
    return shape is not None and len(shape) == 1


def _sides(state: GraphState, addition: fx.Node, activation: ProgressiveActivation) -> tuple[fx.Node, fx.Node] | None:
    """The side of an addition that goes on with the chain, and the +-1 side of the same shape; None without one."""
    for side, other in (addition.args, addition.args[::-1]):
        if isinstance(side, fx.Node) and other in state.signs and state.signs[other].shape == activation.mask_shape:
            return side, other
    return None


def _shortcut(addition: fx.Node, side: fx.Node) -> fx.Node | None:
    """The other side of an addition, if it is a node that the addition leaves as it is."""
    other = addition.args[1] if addition.args[0] is side else addition.args[0]
    in_place = addition.target in (operator.iadd, "add_")
    if not isinstance(other, fx.Node) or other is side or (in_place and addition.args[0] is other):
        return None
    return other
