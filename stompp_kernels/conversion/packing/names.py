"""Names of submodules that torch.fx can write into the Python source of a network."""

from __future__ import annotations

import keyword

from torch import fx, nn

_TAKEN = {*dir(fx.GraphModule), "meta"}  # what a traced network has as attributes of its own


def rename_for_python(model: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """Appends "_" to the names of submodules that are keywords, or attributes of every traced network.

    Any string may name a submodule. torch.fx writes those that are no identifiers as strings, but ``self.class`` too.

    Args:
        model, graph: a model and its graph, both changed.

    Returns:
        New qualified name -> old one, of all modules that have another.
    """
    old = {module: name for name, module in model.named_modules()}
    for parent in model.modules():
        for name in list(parent._modules):
            if keyword.iskeyword(name) or (parent is model and name in _TAKEN):
                _rename(parent, name)
    new = {old[module]: name for name, module in model.named_modules()}
    for node in graph.nodes:
        if node.op == "call_module":
            node.target = new[str(node.target)]
        elif node.op == "get_attr":
            owner, _, own = str(node.target).rpartition(".")
            node.target = f"{new[owner]}.{own}" if owner in new and owner else node.target
    return {name: former for former, name in new.items() if former != name}


def _rename(parent: nn.Module, name: str) -> None:
    new = name + "_"
    while new in parent._modules or new in _TAKEN:
        new += "_"
    # In place, for the order of modules is that of their names in files and tables.
    modules = {new if key == name else key: module for key, module in parent._modules.items()}
    parent._modules.clear()
    parent._modules.update(modules)
