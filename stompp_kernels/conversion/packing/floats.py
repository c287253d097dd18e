"""The second pass over a traced network: what follows a packed layer that writes floats becomes its epilogue."""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.chains import Chain, affine_of, chain_of_floats, replaced_modules, rprelu_of
from stompp_kernels.conversion.packing.folding import fold_norm
from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.nodes import is_fixed_norm
from stompp_kernels.conversion.packing.twins import packed_twin
from stompp_kernels.conversion.sign_notes import noted_signs
from stompp_kernels.nn import BinaryConv2d, PackBatchNorm, PackSigns
from stompp_kernels.ops import Affine, AffineSigns


def absorb(state: GraphState, node: fx.Node) -> None:
    """BatchNorms behind a layer that writes floats, a shortcut, and the packing of the result become its own."""
    layer = state.layers[node].layer
    images = isinstance(layer, BinaryConv2d)
    chain, end = chain_of_floats(state, node, layer, activations=True)
    packers, limits = _packers(state, end, images)
    if end is node and not packers:
        return
    floats = len(end.users) > len(packers)
    affine = affine_of(chain, layer)
    residual, own = _residual_of(state, chain, affine.fused, images)
    rprelu = rprelu_of(chain, layer)
    epilogue: Affine | AffineSigns = replace(affine, rprelu=rprelu, **own)
    if packers:
        linear = affine.scale, affine.bias
        epilogue = AffineSigns(*linear, fused=affine.fused, floats=floats, rprelu=rprelu, limits=limits, **own)
    name, replaces = replaced_modules(state, chain)
    replaces = (*replaces, *(signs.activation for signs in map(noted_signs, packers) if signs is not None))
    args = [node.args[0], *([] if residual is None else [residual])]
    twin = state.add(end, f"{name}_affine", packed_twin(layer, epilogue, replaces), *args)
    _hand_on(state, twin, packers, end, floats)


def _hand_on(state: GraphState, twin: fx.Node, packers: list[fx.Node], end: fx.Node, floats: bool) -> None:
    """Those who read a chain's floats and words read what its layer's twin writes."""
    words = values = twin
    if packers and floats:
        with state.graph.inserting_before(end):
            words = state.graph.call_function(operator.getitem, (twin, 1))
            values = state.graph.call_function(operator.getitem, (twin, 0))
    for packer in packers:
        state.take_notes(words, packer)
        packer.replace_all_uses_with(words)
        state.graph.erase_node(packer)
    end.replace_all_uses_with(values)


def _residual_of(
    state: GraphState, chain: Chain, fused: bool, images: bool
) -> tuple[fx.Node | None, dict[str, Tensor]]:
    """What is added, and the scale and bias of a BatchNorm that stood before it alone, as a downsample's does."""
    residual = chain.residual
    norm = None if residual is None else state.module_of(residual)
    if residual is None or not images or not isinstance(norm, nn.BatchNorm2d) or len(residual.users) > 1:
        return residual, {}
    source = residual.args[0]
    folded = fold_norm(norm, fused) if is_fixed_norm(norm) else None
    if folded is None or not isinstance(source, fx.Node):
        return residual, {}
    return source, {"residual_scale": folded[0], "residual_bias": folded[1]}


def _packers(state: GraphState, end: fx.Node, images: bool) -> tuple[list[fx.Node], Tensor | None]:
    """The nodes that pack a value's signs by the same limits, and these; None: by the sign of the value itself.

    Where there are several limits, as of several shifts, the first is taken: the others pack the floats.
    """
    found: list[tuple[fx.Node, Tensor | None]] = []
    for user in end.users:
        module = state.module_of(user)
        if isinstance(module, PackSigns) and module.images == images:
            found.append((user, None))
        elif isinstance(module, PackBatchNorm) and module.images == images:
            found.append((user, torch.stack([module.low, module.high])))
    limits = found[0][1] if found else None
    return [user for user, other in found if _equal(other, limits)], limits


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
