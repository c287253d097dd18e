"""Functions of a forward that change a tensor in place: what reads the tensor behind one reads its result.

torch.fx does not know that the two are one tensor, and takes a change whose result no one reads for dead code.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from stompp_kernels.conversion.packing.graph_state import GraphState

_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod)
_BITS = (operator.iand, operator.ior, operator.ixor, operator.ipow)
_VIEWS = ("view", "reshape", "transpose", "permute", "t", "squeeze", "unsqueeze", "flatten", "unflatten", "narrow")
_PARTS = ("select", "chunk", "split", "unbind", "expand", "expand_as", "view_as", "diagonal", "T", "mT", "data")
_KEPT = "_stompp_changes"


def keep_changes(state: GraphState) -> None:
    """Lets what comes behind a change read its result.

    Changes of the network's own tensors, and of parts of a tensor, which other nodes read, are noted as no dead code.
    """
    nodes = list(state.graph.nodes)
    places = {node: place for place, node in enumerate(nodes)}
    changes = {node for node in nodes if _is_in_place(node, state.module_of(node))}
    for node in nodes:
        if node not in changes:
            continue
        changed = _input_of(node)
        while changed is not None:
            if changed.op == "get_attr" or _is_part(changed):
                node.meta[_KEPT] = True
                break
            later = [user for user in changed.users if places[user] > places[node]]
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)
            changed = _input_of(changed) if changed in changes else None


def remove_dead_nodes(graph: fx.Graph) -> None:
    """Erases the nodes without users, but for those that change something."""
    graph.eliminate_dead_code(lambda node: node.is_impure() or _KEPT in node.meta)


def _input_of(node: fx.Node) -> fx.Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    name = _name_of(node)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or bool(node.kwargs.get("inplace")) or node.target in (*_OPERATORS, *_BITS)


def _is_part(node: fx.Node) -> bool:
    """Whether a node may give a view of another tensor."""
    return node.target in (operator.getitem, getattr) or _name_of(node) in (*_VIEWS, *_PARTS)


def _name_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
