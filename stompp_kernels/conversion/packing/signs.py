"""The first pass over a traced network, for signs: activations, max-pooling, and chains that end in thresholds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.chains import (
    Chain,
    applied,
    arithmetic_of,
    chain_to_signs,
    reads_signs,
    replaced_modules,
    steps_to,
)
from stompp_kernels.conversion.packing.concatenation import concatenated
from stompp_kernels.conversion.packing.folding import fold_limits, fold_threshold, holds_everywhere
from stompp_kernels.conversion.packing.graph_state import GraphState, Signs
from stompp_kernels.conversion.packing.nodes import (
    flat_name,
    is_addition,
    is_fixed_norm,
    is_max_pool,
    pool_settings,
    with_the_same_signs,
)
from stompp_kernels.conversion.packing.twins import is_packable, packed_twin
from stompp_kernels.conversion.sign_notes import note_signs
from stompp_kernels.nn import (
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    MaxPoolSigns,
    PackBatchNorm,
    PackSigns,
    ProgressiveActivation,
    SignActivation,
    UnpackSigns,
)
from stompp_kernels.nn.pointwise import is_pointwise
from stompp_kernels.ops.checks import pair
from stompp_kernels.ops.reference import WORD_BITS, max_pool2d_out_size


def bits_of(state: GraphState, value: fx.Node, user: fx.Node, images: bool, shape: tuple[int, ...] | None) -> fx.Node:
    """The sign bits of a float node, made before ``user`` unless they exist already.

    Args:
        state: the network.
        value: the node.
        user: reads nothing but its signs.
        images: the words are NHWC, not [..., K].
        shape: of one sample of the value; None where that is not known.
    """
    while (source := with_the_same_signs(value, state.module_of(value))) is not None:
        value = source
    if (value, images) not in state.bits:
        state.bits[value, images] = _folded_bits(state, value, user, images, shape) or _add_packing(
            state, user, PackSigns(images), value
        )
    return state.bits[value, images]


def pack_activation(state: GraphState, node: fx.Node, activation: ProgressiveActivation) -> None:
    """A committed activation becomes words: thresholds of the layer before it, or signs packed in one pass."""
    shape, value = activation.mask_shape, node.args[0]
    assert shape is not None
    assert isinstance(value, fx.Node)
    linear = any(isinstance(state.module_of(user), BinaryLinear) for user in node.users)
    chain = chain_to_signs(state, value, [node], shape)
    if chain is not None:
        linear = not isinstance(state.layers[chain.layer].layer, BinaryConv2d)
    elif not any(_reads_words(state, user, value) for user in value.users):
        state.put(str(node.target), SignActivation())
        return
    signs = Signs(len(shape) == 3 and not linear, shape)
    words = bits_of(state, value, node, signs.images, shape)
    note_signs(words, str(node.target), signs.images)
    state.note_words(node, signs, words)


def _reads_words(state: GraphState, user: fx.Node, node: fx.Node) -> bool:
    """Whether a reader of a node may read its signs as words, whose last dimension then has the size that it fixes.

    Where none does, that size may be one of the example's, such as the length of a sequence, and what is packed would
    be unpacked at once.
    """
    module = state.module_of(user)
    if isinstance(module, BinaryLayer):
        return is_packable(module)
    gives_signs = isinstance(module, ProgressiveActivation) and module.committed
    if gives_signs or is_max_pool(user, module) or with_the_same_signs(user, module) is not None:
        return any(_reads_words(state, reader, user) for reader in user.users)
    if is_addition(user):
        return any(other is not node and _comes_from_layer(state, other) for other in user.args)
    return isinstance(module, nn.Conv2d)


def _comes_from_layer(state: GraphState, value: Any) -> bool:
    """Whether a value is a packed layer's, perhaps through modules of each value or channel."""
    while isinstance(value, fx.Node) and value not in state.layers:
        module = state.module_of(value)
        if isinstance(module, BinaryLayer):
            return is_packable(module)
        if module is None or not value.args or not (is_fixed_norm(module) or is_pointwise(module)):
            return False
        value = value.args[0]
    return isinstance(value, fx.Node)


def pool_signs(state: GraphState, node: fx.Node, module: nn.Module | None) -> None:
    """Max-pooling of signs runs on bits, if their words are NHWC and the kernel has its settings."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    signs = state.signs[source]
    settings = pool_settings(node, module)
    if not signs.images or settings is None:
        return
    padding, dilation = pair("padding", settings["padding"], 0), pair("dilation", settings["dilation"], 1)
    if dilation != (1, 1) and padding != (0, 0):
        return
    kernel_size, stride = pair("kernel_size", settings["kernel_size"], 1), pair("stride", settings["stride"], 1)
    sizes = zip(signs.shape[1:], kernel_size, stride, padding, dilation, strict=True)
    pixels = tuple(max_pool2d_out_size(*size, settings["ceil_mode"]) for size in sizes)
    words = state.add(node, f"{flat_name(node)}_signs", MaxPoolSigns(**settings), state.bits[source, True])
    state.note_words(node, Signs(True, (signs.channels, *pixels)), words)


def unpack_for_float_users(state: GraphState, node: fx.Node) -> None:
    """Those who read a node's signs as floats read its unpacked words."""
    signs = state.signs[node]
    words = state.bits[node, signs.images]
    users = [user for user in node.users if user is not words]
    if users:
        floats = state.add(node, f"{flat_name(node)}_unpack", UnpackSigns(signs.channels, signs.images), words)
        state.note_pixels(floats, signs)
        node.replace_all_uses_with(floats, delete_user_cb=lambda user: user is not words)


def _folded_bits(
    state: GraphState, value: fx.Node, user: fx.Node, images: bool, shape: tuple[int, ...] | None
) -> fx.Node | None:
    """The sign bits of a value that steps compute, from what is before them; None where nothing can be folded."""
    readers = [reader for reader in value.users if reads_signs(state, reader)]
    chain = chain_to_signs(state, value, readers, shape)
    words = None
    if chain is not None and images == isinstance(state.layers[chain.layer].layer, BinaryConv2d):
        words = _threshold(state, chain, user)
    return words or (None if shape is None else _limited_bits(state, value, readers, user, images, shape))


def _limited_bits(
    state: GraphState, value: fx.Node, readers: list[fx.Node], user: fx.Node, images: bool, shape: tuple[int, ...]
) -> fx.Node | None:
    """The sign bits of a value behind monotone steps, from the value before them in one pass; None without steps."""
    channels = shape[0 if images else -1]
    steps = steps_to(state, value, readers, channels, images)
    # BatchNorm's channels lie in the middle of [B, C, L].
    if not steps or (not images and len(shape) != 1 and any(step.channels_second for step in steps)):
        return None

    def function(x: Tensor) -> Tensor:
        return applied(steps, x[None])[0]

    device = next(state.module.parameters()).device
    packer = PackBatchNorm(channels, images)
    with torch.no_grad():
        largest = torch.full((channels,), torch.finfo(torch.float32).max, dtype=torch.float32, device=device)
        if bool((function(largest).isnan() | function(-largest).isnan()).any()):
            return None  # infinities between the steps: their signs are no limits' to tell
        packer.low, packer.high = fold_limits(function, channels, device)
    return _add_packing(state, user, packer, steps[0].source)


def _add_packing(state: GraphState, user: fx.Node, packer: PackSigns | PackBatchNorm, source: fx.Node) -> fx.Node:
    """A call of a packer before ``user``; one for each part of a concatenation, for its layer to do."""
    name, channels = f"{flat_name(user)}_pack", state.parts.get(source)
    if channels is None or not packer.images or any(count % WORD_BITS for count in channels[:-1]):
        return state.add(user, name, packer, source)
    words, first = [], 0
    for part, count in zip(concatenated(source) or [], channels, strict=True):
        own: PackSigns | PackBatchNorm = PackSigns(images=True)
        if isinstance(packer, PackBatchNorm):
            own = PackBatchNorm(count, images=True)
            own.low, own.high = (limit[first : first + count].clone() for limit in (packer.low, packer.high))
        words.append(state.add(user, name, own, part))
        first += count
    with state.graph.inserting_before(user):
        return state.graph.call_function(torch.cat, (words, 3))


def _threshold(state: GraphState, chain: Chain, node: fx.Node) -> fx.Node | None:
    """The node of the words that a chain ends in; None where its signs are no thresholds of the layer's sums."""
    layer = state.layers[chain.layer].layer
    before = arithmetic_of(chain.before, layer)

    def functions(acc: Tensor, residual: float | None) -> Tensor:
        sums = before(acc)
        return applied(chain.after, sums if residual is None else sums + residual)

    def function(acc: Tensor, residual: float | None) -> Tensor:
        return functions(acc[None], residual)[0]

    K, channels = layer.weight[0].numel(), layer.weight.shape[0]
    with torch.no_grad():
        epilogue = fold_threshold(function, K, channels, chain.residual is not None, layer.weight.device)
        if not all(step.monotone for step in chain.steps) and not holds_everywhere(epilogue, functions, K):
            return None
    args = [chain.layer.args[0]]
    if chain.residual is not None:
        args.append(state.bits[chain.residual, isinstance(layer, BinaryConv2d)])
    name, replaces = replaced_modules(state, chain)
    if isinstance(state.module_of(node), ProgressiveActivation):
        replaces = (*replaces, str(node.target))
    return state.add(node, f"{name}_fused", packed_twin(layer, epilogue, replaces), *args)
