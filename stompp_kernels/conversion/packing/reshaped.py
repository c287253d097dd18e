"""Layers that run as convolutions of two dimensions: the graph gets the images that these read and write.

What stands before or behind a convolution of sequences and works value by value, or channel by channel, then works on
images too, so that chains fold as those of images do, from one such convolution to the next.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import (
    flat_name,
    fresh_name,
    has_hooks,
    is_addition,
    is_fixed_norm,
    pool_settings,
)
from stompp_kernels.conversion.packing.twins import has_binary_weight, is_packable
from stompp_kernels.nn import ProgressiveActivation
from stompp_kernels.nn.reshaped_convs import RESHAPED, AsSequence, make_plain
from stompp_kernels.nn.sign_keeping import SignKeeping

_OF_SEQUENCES = (nn.Conv1d, nn.ConvTranspose1d)
_POINTWISE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.PReLU, SignKeeping)
_KEEP_DIMENSIONS = (*_POINTWISE, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, ProgressiveActivation)


def to_images(state: GraphState, names: dict[str, str]) -> None:
    """Lets committed layers of these kinds be convolutions of two dimensions between nodes that reshape.

    Args:
        state: the network, whose graph is changed.
        names: of modules that were renamed, to those in the model; grows by the twins of modules called several times.
    """
    sequences = _Sequences(state, names)
    for node in list(state.graph.nodes):
        sequences.pool_by_module(node)
    reshapes: dict[nn.Module, Any] = {}
    for node in list(state.graph.nodes):
        module: Any = state.module_of(node)
        if isinstance(module, RESHAPED) and (is_packable(module) or has_binary_weight(module)):
            reshapes[module] = module.reshape
            make_plain(module)  # of the copy that is converted
        if module not in reshapes:
            continue
        reshape = reshapes[module]
        if isinstance(reshape, AsSequence):
            node.args = (sequences.image_of(node.args[0], node),)
            sequences.squeeze(node, list(node.users))
            continue
        readers = list(node.users)
        after = _appended(state, node, reshape.from_images)
        node.replace_all_uses_with(after, delete_user_cb=lambda user, readers=readers: user in readers)
    sequences.move()


class _Sequences:
    """The nodes that make sequences of images of height 1, and images of sequences, moved until they meet.

    Args:
        state, names: as of :func:`to_images`.
    """

    def __init__(self, state: GraphState, names: dict[str, str]) -> None:
        self._state, self._names = state, names
        self._squeezed: dict[fx.Node, None] = {}  # in order, as is what follows
        self._unsqueezed: dict[fx.Node, None] = {}

    def pool_by_module(self, node: fx.Node) -> None:
        """Makes of max-pooling by a function a module that does the same."""
        if node.target not in (F.max_pool1d, torch.max_pool1d):
            return
        settings = pool_settings(node, None)
        if settings is None or any(isinstance(arg, fx.Node) for arg in (*node.args[1:], *node.kwargs.values())):
            return
        module = nn.MaxPool1d(**settings).eval()
        node.replace_all_uses_with(self._state.add(node, node.name, module, node.args[0]))
        self._state.graph.erase_node(node)

    def image_of(self, value: Any, reader: fx.Node) -> fx.Node:
        """What a squeezed value was, or the value with a height of 1, for ``reader``."""
        if value in self._squeezed:
            return value.args[0]
        with self._state.graph.inserting_before(reader):
            image = self._state.graph.call_method("unsqueeze", (value, 2))
        self._unsqueezed[image] = None
        return image

    def squeeze(self, node: fx.Node, readers: list[fx.Node]) -> None:
        """Gives those that read a sequence the one in a node that now is an image."""
        after = _appended(self._state, node, lambda proxy: proxy.squeeze(2))
        node.replace_all_uses_with(after, delete_user_cb=lambda user: user in readers)
        self._squeezed[after] = None

    def move(self) -> None:
        """Moves squeezes behind, and unsqueezes before, what works on images as it does on sequences."""
        before: dict[fx.Node, int] | None = None
        while (readers := {node: len(node.users) for node in self._squeezed}) != before or self._unsqueezed:
            before = readers
            for node in list(self._squeezed):
                self._sink(node)
            for node in list(self._unsqueezed):
                self._raise(node)
            self._unsqueezed.clear()

    def _sink(self, squeeze: fx.Node) -> None:
        """Moves a squeeze as far behind as nothing else reads it."""
        while len(squeeze.users) == 1:
            (user,) = squeeze.users
            twin = self._of_images(user)
            if twin is not None:
                self._put(user, twin)
                user.args = (squeeze.args[0], *user.args[1:])
            elif is_addition(user) and all(self._is_sequence(arg) for arg in user.args):
                user.args = tuple(self.image_of(arg, user) for arg in user.args)
            else:
                break
            self.squeeze(user, list(user.users))
            self._drop(squeeze)
            squeeze = next(iter(user.users))
        self._drop(squeeze)

    def _raise(self, unsqueeze: fx.Node) -> None:
        """Moves an unsqueeze as far to the front as it can go; what else reads the sequences there gets those."""
        while (source := unsqueeze.args[0]) not in self._squeezed:
            assert isinstance(source, fx.Node)
            twin = self._of_images(source)
            if twin is None:
                return
            self._put(source, twin)
            others = [user for user in source.users if user is not unsqueeze]
            if others:
                self.squeeze(source, others)
            with self._state.graph.inserting_before(source):
                above = self._state.graph.call_method("unsqueeze", (source.args[0], 2))
            source.args = (above, *source.args[1:])
            unsqueeze.replace_all_uses_with(source)
            self._state.graph.erase_node(unsqueeze)
            unsqueeze = above
        unsqueeze.replace_all_uses_with(source.args[0])
        self._state.graph.erase_node(unsqueeze)
        self._drop(source)

    def _drop(self, squeeze: fx.Node) -> None:
        if squeeze in self._squeezed and not squeeze.users:
            self._state.graph.erase_node(squeeze)
            del self._squeezed[squeeze]

    def _is_sequence(self, value: Any) -> bool:
        """Whether a value is known to be [B, C, L]."""
        if not isinstance(value, fx.Node):
            return False
        if is_addition(value):
            return all(self._is_sequence(arg) for arg in value.args)
        module = self._state.module_of(value)
        if isinstance(module, _KEEP_DIMENSIONS):
            return self._is_sequence(value.args[0])
        return value in self._squeezed or isinstance(module, _OF_SEQUENCES)

    def _put(self, node: fx.Node, twin: nn.Module) -> None:
        """Lets a node call a module's twin of images; other nodes that call the module go on with it."""
        name = str(node.target)
        if twin is self._state.module_of(node):
            return
        if self._state.calls_of(node) > 1:
            own = fresh_name(self._state.module, flat_name(node))
            self._names[own] = self._names.get(name, name)
            node.target = name = own
        self._state.put(name, twin)

    def _of_images(self, node: fx.Node) -> nn.Module | None:
        """The module that does for images of height 1 what a node's does for sequences; None without one."""
        module: Any = self._state.module_of(node)
        if module is None or has_hooks(module):
            return None
        if isinstance(module, nn.BatchNorm1d) and is_fixed_norm(module):
            twin = copy.copy(module)
            twin.__class__ = nn.BatchNorm2d
            return twin
        if isinstance(module, ProgressiveActivation):
            shape = module.mask_shape
            if not module.committed or shape is None or len(shape) != 2:
                return None
            twin = copy.copy(module)
            twin.set_mask_shape((shape[0], 1, shape[1]))
            return twin
        if isinstance(module, nn.MaxPool1d):
            settings = pool_settings(node, module)
            return None if settings is None else _pool_of_images(**settings)
        return module if isinstance(module, _POINTWISE) else None


def _pool_of_images(ceil_mode: bool, **sizes: Any) -> nn.MaxPool2d:
    numbers = {name: size[0] if isinstance(size, (tuple, list)) else size for name, size in sizes.items()}
    of_height = {name: 0 if name == "padding" else 1 for name in numbers}
    return nn.MaxPool2d(**{name: (of_height[name], size) for name, size in numbers.items()}, ceil_mode=ceil_mode).eval()


def _appended(state: GraphState, node: fx.Node, function: Any) -> fx.Node:
    """The node of what a function makes of a node, right behind it."""
    following = node.next
    with state.graph.inserting_before(following):
        return function(fx.Proxy(node, fx.proxy.GraphAppendingTracer(state.graph))).node
