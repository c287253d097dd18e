"""A traced network's committed layers, rewritten to run on bits.

Two passes over the graph. The first, in order of execution, gives each committed layer (layers.py) or product of
activations a packed twin, keeps signs as words (signs.py: activations, max-pooling), and folds a chain that ends in
signs decided on integers into thresholds. The second folds what follows a layer that still writes floats (floats.py):
BatchNorm, a float shortcut, and the packing of the sum.
"""

from __future__ import annotations

from torch import fx, nn

from stompp_kernels.conversion.packing.channel_shuffle import shuffle_by_function
from stompp_kernels.conversion.packing.concatenation import move_before_concatenations
from stompp_kernels.conversion.packing.fast_layers import round_attention, round_linear_layers
from stompp_kernels.conversion.packing.float_convs import pack_float_convs
from stompp_kernels.conversion.packing.floats import absorb
from stompp_kernels.conversion.packing.graph_state import GraphState
from stompp_kernels.conversion.packing.in_place import keep_changes, remove_dead_nodes
from stompp_kernels.conversion.packing.layers import pack_layer, pack_weight
from stompp_kernels.conversion.packing.names import rename_for_python
from stompp_kernels.conversion.packing.nodes import has_hooks, is_expanded_needlessly, is_max_pool
from stompp_kernels.conversion.packing.reshaped import to_images
from stompp_kernels.conversion.packing.sharing import share_equal_modules
from stompp_kernels.conversion.packing.signs import pack_activation, pool_signs, unpack_for_float_users
from stompp_kernels.conversion.packing.strided_unpack import move_strides_to_unpacking
from stompp_kernels.conversion.packing.twins import has_binary_weight, is_packable, matmul_twin
from stompp_kernels.conversion.sign_notes import note_signs, noted_signs
from stompp_kernels.nn import BinaryLayer, BinaryMatmul, PackedMatmul, PrepackedConv2d, ProgressiveActivation
from stompp_kernels.nn.packed import PackedLayer

_NOTHING_IN_EVAL = (nn.Identity, nn.Dropout, nn.Dropout2d)


def pack_graph(model: nn.Module, graph: fx.Graph, fast: bool = False) -> fx.GraphModule:
    """The packed network of a model in eval mode and its traced graph, both of which it may use up.

    Args:
        fast: let float layers multiply bfloat16 where the processor does.
    """
    names = rename_for_python(model, graph)
    state = GraphState(model, graph)
    keep_changes(state)
    _simplify(state)
    shuffle_by_function(state)
    to_images(state, names)
    move_before_concatenations(state)
    for node in list(state.graph.nodes):
        _pack_node(state, node)
    for node in state.signs:
        unpack_for_float_users(state, node)
    remove_dead_nodes(state.graph)
    for node in [node for node in state.graph.nodes if node in state.layers]:
        absorb(state, node)
    remove_dead_nodes(state.graph)
    state.graph.lint()
    state.module.delete_all_unused_submodules()
    pack_float_convs(state.module, state.pixels, fast)
    move_strides_to_unpacking(state.module)
    _prepack_float_convs(state.module)
    if fast:
        round_linear_layers(state.module)
        round_attention(state.module)
    _restore_names(state.module, names)
    share_equal_modules(state.module)
    state.module.recompile()
    return state.module.eval().requires_grad_(False)


def _simplify(state: GraphState) -> None:
    """Takes out what does nothing in eval mode; views become reshapes."""
    for node in list(state.graph.nodes):
        module = state.module_of(node)
        if isinstance(module, _NOTHING_IN_EVAL) and not has_hooks(module):
            node.replace_all_uses_with(node.args[0])
            state.graph.erase_node(node)
        elif node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # packed convolutions write channels_last, of which not every view exists
        elif is_expanded_needlessly(node):
            node.replace_all_uses_with(node.args[0])  # so that who reads the values does not read their shape too
            state.graph.erase_node(node)


def _pack_node(state: GraphState, node: fx.Node) -> None:
    module = state.module_of(node)
    if isinstance(module, BinaryLayer) and is_packable(module):
        pack_layer(state, node, module)
    elif isinstance(module, BinaryLayer) and has_binary_weight(module):
        pack_weight(state, node, module)
    elif isinstance(module, BinaryMatmul) and module.committed:
        state.put(str(node.target), matmul_twin(module, str(node.target)))
    elif isinstance(module, ProgressiveActivation) and module.committed:
        pack_activation(state, node, module)
    elif is_max_pool(node, module) and node.args[0] in state.signs:
        pool_signs(state, node, module)


def _prepack_float_convs(packed: fx.GraphModule) -> None:
    """The convolutions that torch still runs keep their weights in the order that its kernels read."""
    for name, module in list(packed.named_modules()):
        if type(module) is nn.Conv2d and not has_hooks(module):
            parent, _, own = name.rpartition(".")
            setattr(packed.get_submodule(parent), own, PrepackedConv2d.of(module))


def _restore_names(packed: fx.GraphModule, names: dict[str, str]) -> None:
    """What the packed network says of the model's modules names them as the model does, not as Python must."""
    for layer in packed.modules():
        if isinstance(layer, (PackedLayer, PackedMatmul)):
            layer.replaces = tuple(names.get(name, name) for name in layer.replaces)
    for node in packed.graph.nodes:
        signs = noted_signs(node)
        if signs is not None:
            note_signs(node, names.get(signs.activation, signs.activation), signs.images)
