"""The first pass over a traced network, for signs: activations, max-pooling, and chains that end in thresholds."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.chains import Chain, arithmetic_of, chain_to_signs, replaced_modules
from stompp_kernels.conversion.packing.folding import fold_limits, fold_threshold
from stompp_kernels.conversion.packing.graph_state import GraphState, Signs
from stompp_kernels.conversion.packing.nodes import flat_name, is_fixed_norm, pool_settings, with_the_same_signs
from stompp_kernels.conversion.packing.twins import packed_twin
from stompp_kernels.conversion.sign_notes import note_signs
from stompp_kernels.nn import (
    BinaryConv2d,
    BinaryLinear,
    MaxPoolSigns,
    PackBatchNorm,
    PackSigns,
    ProgressiveActivation,
    UnpackSigns,
)
from stompp_kernels.ops.checks import pair
from stompp_kernels.ops.reference import max_pool2d_out_size


def bits_of(state: GraphState, value: fx.Node, user: fx.Node, images: bool) -> fx.Node:
    """The sign bits of a float node, packed before ``user`` unless they exist already."""
    while (source := with_the_same_signs(value, state.module_of(value))) is not None:
        value = source
    if (value, images) not in state.bits:
        state.bits[value, images] = state.add(user, f"{flat_name(user)}_pack", PackSigns(images), value)
    return state.bits[value, images]


def pack_activation(state: GraphState, node: fx.Node, activation: ProgressiveActivation) -> None:
    """A committed activation becomes words: thresholds of the layer before it, or signs packed in one pass."""
    assert activation.mask_shape is not None
    chain = chain_to_signs(state, node, activation)
    if chain is None:
        linear = any(isinstance(state.module_of(user), BinaryLinear) for user in node.users)
        signs = Signs(len(activation.mask_shape) == 3 and not linear, activation.mask_shape)
        value = node.args[0]
        assert isinstance(value, fx.Node)
        words = _normalized_bits(state, value, node, signs) or bits_of(state, value, node, signs.images)
    else:
        signs = Signs(isinstance(state.layers[chain.layer].layer, BinaryConv2d), activation.mask_shape)
        words = _threshold(state, chain, node)
    note_signs(words, str(node.target), signs.images)
    state.note_words(node, signs, words)


def pool_signs(state: GraphState, node: fx.Node, module: nn.Module | None) -> None:
    """Max-pooling of signs runs on bits, if their words are NHWC and the kernel has its settings."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    signs = state.signs[source]
    settings = pool_settings(node, module)
    if not signs.images or settings is None or (settings["dilation"] != 1 and settings["padding"] != 0):
        return
    sizes = zip(
        signs.shape[1:],
        pair("kernel_size", settings["kernel_size"], 1),
        pair("stride", settings["stride"], 1),
        pair("padding", settings["padding"], 0),
        pair("dilation", settings["dilation"], 1),
        strict=True,
    )
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


def _normalized_bits(state: GraphState, value: fx.Node, user: fx.Node, signs: Signs) -> fx.Node | None:
    """The sign bits of a BatchNorm's output, from its input in one pass; None if it is no such node."""
    norm = state.module_of(value)
    if not is_fixed_norm(norm) or list(value.users) != [user]:
        return None
    # [B, C, L] has its channels in the middle.
    if signs.images != isinstance(norm, nn.BatchNorm2d) or (not signs.images and len(signs.shape) != 1):
        return None
    shape = (1, norm.num_features, 1, 1) if signs.images else (1, norm.num_features)

    def function(x: Tensor) -> Tensor:
        return norm(x.reshape(shape)).reshape(-1)

    packer = PackBatchNorm(norm.num_features, signs.images)
    with torch.no_grad():
        packer.low, packer.high = fold_limits(function, norm.num_features, norm.running_mean.device)
    source = value.args[0]
    assert isinstance(source, fx.Node)
    return state.add(user, f"{flat_name(user)}_pack", packer, source)


def _threshold(state: GraphState, chain: Chain, node: fx.Node) -> fx.Node:
    """The node of the words that a chain ends in."""
    layer = state.layers[chain.layer].layer
    arithmetic = arithmetic_of(state, chain, layer)

    def function(acc: Tensor, residual: float | None) -> Tensor:
        return arithmetic(acc[None], residual)[0]

    K, channels = layer.weight[0].numel(), layer.weight.shape[0]
    with torch.no_grad():
        epilogue = fold_threshold(function, K, channels, chain.residual is not None, layer.weight.device)
    args = [chain.layer.args[0]]
    if chain.residual is not None:
        args.append(state.bits[chain.residual, isinstance(layer, BinaryConv2d)])
    name, replaces = replaced_modules(state, chain)
    return state.add(node, f"{name}_fused", packed_twin(layer, epilogue, (*replaces, str(node.target))), *args)
