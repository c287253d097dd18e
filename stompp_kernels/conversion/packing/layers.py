"""The first pass over a traced network, for layers: each committed one gets a twin whose weights are bits."""

from __future__ import annotations

from torch import fx

from stompp_kernels.conversion.packing.chains import affine_of, chain_of_floats, replaced_modules
from stompp_kernels.conversion.packing.graph_state import GraphState, LayerCall
from stompp_kernels.conversion.packing.signs import bits_of
from stompp_kernels.conversion.packing.twins import binary_weight_twin, own_affine, packed_twin
from stompp_kernels.nn import BinaryConv2d, BinaryLayer


def pack_layer(state: GraphState, node: fx.Node, layer: BinaryLayer) -> None:
    """A committed layer reads bits and writes floats; what follows may yet change what it writes."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    # An activation of the layer's own divides by a positive scale at most: the signs are the input's.
    shape = None if layer.activation is None else layer.activation.mask_shape
    words = bits_of(state, value, node, isinstance(layer, BinaryConv2d), shape)
    name = str(node.target)
    twin = state.add(node, f"{name}_packed", packed_twin(layer, own_affine(layer), (name,)), words)
    state.layers[twin] = LayerCall(layer, name)
    node.replace_all_uses_with(twin)
    state.graph.erase_node(node)


def pack_weight(state: GraphState, node: fx.Node, layer: BinaryLayer) -> None:
    """A layer with committed weights on floats; BatchNorms behind it become its scale and bias, to rounding."""
    chain, end = chain_of_floats(state, node, layer, activations=False)
    name, replaces = replaced_modules(state, chain)
    value = node.args[0]
    assert isinstance(value, fx.Node)
    twin = binary_weight_twin(layer, affine_of(chain, layer), replaces)
    end.replace_all_uses_with(state.add(end, f"{name}_binary_weight", twin, value))
