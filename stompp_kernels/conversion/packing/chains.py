"""What stands behind a committed layer in a traced network and can become part of its packed twin."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from stompp_kernels.conversion.packing.folding import fold_affine
from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import is_addition, with_the_same_signs
from stompp_kernels.conversion.packing.steps import Step, relu_of, step_of
from stompp_kernels.conversion.packing.twins import is_packable, own_affine
from stompp_kernels.nn import BinaryConv2d, BinaryLayer, ProgressiveActivation, UnpackSigns
from stompp_kernels.ops import Affine


@dataclass
class Chain:
    """layer -> steps (-> + residual -> steps), none of it read by anything else.

    Attributes:
        layer: the layer's node.
        before, after: what is done with the layer's sums, and with their sum with the residual.
        residual: what is added between them, if anything is.
    """

    layer: fx.Node
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    residual: fx.Node | None = None

    @property
    def steps(self) -> list[Step]:
        """All steps, in order of execution."""
        return [*self.before, *self.after]


def reads_signs(state: GraphState, node: fx.Node) -> bool:
    """Whether a node is a committed activation, a layer to be packed, or what keeps signs for such alone."""
    module = state.module_of(node)
    if with_the_same_signs(node, module) is not None:
        return all(reads_signs(state, user) for user in node.users)
    if isinstance(module, BinaryLayer):
        return is_packable(module)
    return isinstance(module, ProgressiveActivation) and module.committed


def chain_to_signs(
    state: GraphState, value: fx.Node, readers: Collection[fx.Node], shape: tuple[int, ...] | None
) -> Chain | None:
    """The chain that gives a value of which nothing but signs is read, and holds nothing but integers and steps.

    Args:
        state: the network.
        value: the node whose signs are read.
        readers: the nodes that read nothing but its signs.
        shape: of one sample of the value.
    """
    for images in (True, False):
        if shape is not None and (not images or len(shape) == 3):
            chain = _chain_back(state, value, readers, shape, images)
            if chain is not None:
                return chain
    return None


def _chain_back(
    state: GraphState, value: fx.Node, readers: Collection[fx.Node], shape: tuple[int, ...], images: bool
) -> Chain | None:
    after: list[Step] = []
    before: list[Step] = []
    residual = None
    current, users = value, set(readers)
    while set(current.users) <= users:
        if current in state.layers:
            chain = Chain(current, before[::-1], after[::-1], residual)
            return chain if _is_per_output(state, chain, shape, images) else None
        step = step_of(state, current, shape[0 if images else -1], images)
        if step is not None:
            before.append(step)
            users, current = {current}, step.source
        elif residual is None and is_addition(current):
            sides = _sides(state, current, shape)
            if sides is None:
                return None
            after, before = before, []
            users, (current, residual) = {current}, sides
        else:
            return None
    return None


def steps_to(
    state: GraphState, value: fx.Node, readers: Collection[fx.Node], channels: int, images: bool
) -> list[Step]:
    """The monotone steps that end in a value of which nothing but signs is read, in order of execution."""
    steps: list[Step] = []
    current, users = value, set(readers)
    while set(current.users) <= users:
        step = step_of(state, current, channels, images)
        if step is None or not step.monotone:
            break
        steps.append(step)
        users, current = {current}, step.source
    # One channel that a shift makes many of is not packed as many.
    found = getattr(
        state.module_of(current), "num_features", getattr(state.module_of(current), "out_channels", channels)
    )
    return steps[::-1] if found == channels else []


def chain_of_floats(state: GraphState, node: fx.Node, layer: BinaryLayer, activations: bool) -> tuple[Chain, fx.Node]:
    """The chain behind a layer as far as its twin can do the work, and the chain's last node.

    Args:
        state: the network.
        node: the layer's node.
        layer: the layer.
        activations: whether the twin can add a float shortcut, and then compute an RPReLU.
    """
    chain, end = Chain(node), node
    images, channels = isinstance(layer, BinaryConv2d), layer.weight.shape[0]

    def take(kind: str, steps: list[Step]) -> bool:
        nonlocal end
        if len(end.users) != 1:
            return False
        (user,) = end.users
        step = step_of(state, user, channels, images)
        if kind == "prelu" and (step is None or step.kind != kind):
            step = relu_of(state, user, channels)
            if step is not None and not _is_finite(state, chain, layer):
                return False
        if step is None or step.source is not end or step.kind != kind:
            return False
        if step.channels_second and not _has_channels_second(layer):
            return False
        steps.append(step)
        end = step.node
        return True

    while take("norm", chain.before):
        pass
    if not activations:
        return chain, end
    if not take("add", chain.after):
        (user,) = end.users if len(end.users) == 1 else (None,)
        if user is not None and is_addition(user) and (residual := _shortcut(user, end)) is not None:
            chain.residual, end = residual, user
            take("add", chain.after)
    if take("prelu", chain.after):
        take("add", chain.after)
    return chain, end


def replaced_modules(state: GraphState, chain: Chain) -> tuple[str, tuple[str, ...]]:
    """The name of a chain's layer, and the modules whose work the layer's twin does."""
    call = state.layers.get(chain.layer)
    name = str(chain.layer.target) if call is None else call.name
    return name, (name, *(str(step.node.target) for step in chain.steps if step.node.op == "call_module"))


def affine_of(chain: Chain, layer: BinaryLayer) -> Affine:
    """The layer's own scales and bias, and the steps before the residual, as one epilogue."""
    if not chain.before:
        return own_affine(layer)
    with torch.no_grad():
        return fold_affine(arithmetic_of(chain.before, layer), layer.weight[0].numel(), layer.weight.device)


def rprelu_of(chain: Chain, layer: BinaryLayer) -> Tensor | None:
    """The steps after the residual as an epilogue's RPReLU; None where there are none."""
    if not chain.after:
        return None
    rows = torch.zeros(3, layer.weight.shape[0], dtype=torch.float32, device=layer.weight.device)
    rows[1] = 1.0
    slopes = [index for index, step in enumerate(chain.after) if step.kind == "prelu"]
    for index, step in enumerate(chain.after):
        assert step.constant is not None
        rows[1 if index in slopes else 2 if slopes and index > slopes[0] else 0] = step.constant
    return rows


def arithmetic_of(steps: list[Step], layer: BinaryLayer) -> Callable[..., Tensor]:
    """A function that runs the layer's scales and the steps' own modules on float32 integers [n, channels]."""
    scale = own_affine(layer)

    def function(acc: Tensor) -> Tensor:
        y = acc * scale.scale
        return applied(steps, y + scale.bias)

    return function


def applied(steps: list[Step], values: Tensor) -> Tensor:
    """What the steps make of float32 values [n, channels]."""
    for step in steps:
        values = step.function(values)
    return values


def _is_per_output(state: GraphState, chain: Chain, shape: tuple[int, ...], images: bool) -> bool:
    """Whether the chain's channels are the layer's outputs, and its residual's words are in their order."""
    layer = state.layers[chain.layer].layer
    if images != isinstance(layer, BinaryConv2d) or layer.weight.shape[0] != shape[0 if images else -1]:
        return False
    if chain.residual is not None and (chain.residual, images) not in state.bits:
        return False
    # BatchNorm's channels are dimension 1, a linear layer's outputs the last.
    return images or len(shape) == 1 or not any(step.channels_second for step in chain.steps)


def _is_finite(state: GraphState, chain: Chain, layer: BinaryLayer) -> bool:
    """Whether a chain's values are finite for all sums of its layer: an RPReLU makes NaN of -inf, a ReLU 0."""
    if chain.residual is not None and not _is_signs(state, chain.residual):
        return False
    affine, K = affine_of(chain, layer), layer.weight[0].numel()
    reach = affine.scale.abs() * K + affine.bias.abs() + (chain.residual is not None)
    for step in chain.after:
        assert step.constant is not None
        reach = reach + step.constant.abs()
    return bool(reach.isfinite().all())


def _is_signs(state: GraphState, node: fx.Node) -> bool:
    """Whether a node's floats are +-1."""
    return node in state.signs or isinstance(state.module_of(node), UnpackSigns)


def _has_channels_second(layer: BinaryLayer) -> bool:
    """Whether the second dimension behind a layer, which holds BatchNorm's channels, is that of the layer's outputs."""
    if isinstance(layer, BinaryConv2d):
        return True
    shape = None if layer.activation is None else layer.activation.mask_shape
    return shape is not None and len(shape) == 1


def _sides(state: GraphState, addition: fx.Node, shape: tuple[int, ...]) -> tuple[fx.Node, fx.Node] | None:
    """The side of an addition that goes on with the chain, and the +-1 side of the same shape; None without one."""
    for side, other in (addition.args, addition.args[::-1]):
        if isinstance(side, fx.Node) and other in state.signs and state.signs[other].shape == shape:
            return side, other
    return None


def _shortcut(addition: fx.Node, side: fx.Node) -> fx.Node | None:
    """The other side of an addition, if it is a node that the addition leaves as it is."""
    other = addition.args[1] if addition.args[0] is side else addition.args[0]
    in_place = addition.target in (operator.iadd, "add_")
    if not isinstance(other, fx.Node) or other is side or (in_place and addition.args[0] is other):
        return None
    return other
