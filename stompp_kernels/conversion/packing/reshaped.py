"""Layers that run as convolutions of two dimensions: the graph gets the images that these read and write.

What follows a convolution of sequences value by value, or channel by channel, then works on images too, so that chains
fold as those of images do, up to the next such convolution.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import has_hooks, is_addition, is_fixed_norm
from stompp_kernels.conversion.packing.twins import has_binary_weight, is_packable
from stompp_kernels.nn import ProgressiveActivation
from stompp_kernels.nn.reshaped_convs import RESHAPED, AsSequence, make_plain
from stompp_kernels.nn.sign_keeping import SignKeeping

_OF_SEQUENCES = (nn.Conv1d,)
_POINTWISE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.PReLU, SignKeeping)


def to_images(state: GraphState) -> None:
    """Lets committed layers of these kinds be convolutions of two dimensions between nodes that reshape."""
    tracer = fx.proxy.GraphAppendingTracer(state.graph)
    squeezed: set[fx.Node] = set()
    reshapes: dict[nn.Module, Any] = {}
    for node in list(state.graph.nodes):
        module: Any = state.module_of(node)
        if isinstance(module, RESHAPED) and (is_packable(module) or has_binary_weight(module)):
            reshapes[module] = module.reshape
            make_plain(module)  # of the copy that is converted
        if module not in reshapes:
            continue
        reshape, source = reshapes[module], node.args[0]
        if source in squeezed and isinstance(reshape, AsSequence):
            node.args = (source.args[0],)
        else:
            with state.graph.inserting_before(node):
                node.args = (reshape.to_images(fx.Proxy(source, tracer)).node,)
        readers = list(node.users)
        with state.graph.inserting_after(node):
            after = _appended(state, node, lambda proxy, reshape=reshape: reshape.from_images(proxy))
        node.replace_all_uses_with(after, delete_user_cb=lambda user, readers=readers: user in readers)
        if isinstance(reshape, AsSequence):
            _sink(state, after, squeezed)


def _appended(state: GraphState, node: fx.Node, function: Any) -> fx.Node:
    """The node of what a function makes of a node, right behind it."""
    following = node.next
    with state.graph.inserting_before(following):
        return function(fx.Proxy(node, fx.proxy.GraphAppendingTracer(state.graph))).node


def _sink(state: GraphState, squeeze: fx.Node, squeezed: set[fx.Node]) -> None:
    """Moves a squeeze behind what works on images as it does on sequences, as far as nothing else reads it.

    Args:
        squeezed: the squeezes that there are; changed.
    """
    squeezed.add(squeeze)
    while len(squeeze.users) == 1:
        (user,) = squeeze.users
        twin = _of_images(state, user)
        if twin is None and is_addition(user) and all(_is_sequence(state, arg, squeezed) for arg in user.args):
            user.args = tuple(_image_of(state, arg, user, squeezed) for arg in user.args)
        elif twin is None:
            break
        else:
            if twin is not state.module_of(user):
                name = str(user.target)
                state.module.set_submodule(name, twin)
                state.note_module(name, twin)
            user.args = (squeeze.args[0], *user.args[1:])
        readers = list(user.users)
        after = _appended(state, user, lambda proxy: proxy.squeeze(2))
        user.replace_all_uses_with(after, delete_user_cb=lambda reader, readers=readers: reader in readers)
        if not squeeze.users:
            state.graph.erase_node(squeeze)
            squeezed.discard(squeeze)
        squeeze = after
        squeezed.add(squeeze)


def _is_sequence(state: GraphState, value: Any, squeezed: set[fx.Node]) -> bool:
    """Whether a value is known to be [B, C, L]."""
    return value in squeezed or (isinstance(value, fx.Node) and isinstance(state.module_of(value), _OF_SEQUENCES))


def _image_of(state: GraphState, value: fx.Node, reader: fx.Node, squeezed: set[fx.Node]) -> Any:
    """What a squeezed value was, or the value with a height of 1."""
    if value in squeezed:
        return value.args[0]
    with state.graph.inserting_before(reader):
        return state.graph.call_method("unsqueeze", (value, 2))


def _of_images(state: GraphState, node: fx.Node) -> nn.Module | None:
    """The module that does for images of height 1 what a node's does for sequences; None without one."""
    module: Any = state.module_of(node)
    if module is None or has_hooks(module) or state.calls_of(node) > 1:
        return None
    if isinstance(module, nn.BatchNorm1d) and is_fixed_norm(module):
        twin = copy.copy(module)
        twin.__class__ = nn.BatchNorm2d
        return twin
    if isinstance(module, ProgressiveActivation) and module.committed and module.mask_shape is not None:
        twin = copy.copy(module)
        twin.set_mask_shape((module.mask_shape[0], 1, *module.mask_shape[1:]))
        return twin
    if isinstance(module, nn.MaxPool1d) and not module.return_indices:
        names = ("kernel_size", "stride", "padding", "dilation")
        numbers = [v[0] if isinstance(v := getattr(module, name), tuple) else v for name in names]
        sizes = [(first, number) for first, number in zip((1, 1, 0, 1), numbers, strict=True)]
        return nn.MaxPool2d(*sizes, ceil_mode=module.ceil_mode).eval()
    return module if isinstance(module, _POINTWISE) else None
