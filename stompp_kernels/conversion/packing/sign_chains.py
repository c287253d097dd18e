"""Where a model that keeps its own forward hands one layer's output to the next through a function of each value.

The next layer reads nothing but signs, so the first may write them itself. That no one else reads the floats between
them is seen in the graph of the block that calls all three, which torch.fx traces with everything else taken whole.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from stompp_kernels.conversion.packing.nodes import has_hooks
from stompp_kernels.conversion.tracing import Tracer
from stompp_kernels.nn import ProgressiveActivation
from stompp_kernels.nn.pointwise import is_pointwise
from stompp_kernels.nn.sign_keeping import SignKeeping


@dataclass(frozen=True)
class SignChain:
    """Names: a layer, the function that alone reads its output, and the layer that alone reads the function's."""

    layer: str
    function: str
    reader: str


def sign_chains(model: nn.Module, layers: Collection[str]) -> list[SignChain]:
    """The chains of a model in eval mode that are certain, in order of its modules.

    A block that torch.fx cannot follow has none, nor do modules with hooks, or those registered at several places. What
    a block's inner modules compute is taken to be read through the block.

    Args:
        layers: names of the layers to link, which read signs only.
    """
    names = {module: name for name, module in model.named_modules()}
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    linked = {model.get_submodule(name) for name in layers}
    inlined = {module for module in model.modules() if module not in linked and _layers_in(module, linked) == 1}
    chains = []
    for block in model.modules():
        own = list(_inside(block, inlined))
        if block in inlined or len(linked.intersection(own)) < 2 or not any(map(_is_function_of_each_value, own)):
            continue
        for found in _chains_in(block, inlined, linked):
            between = [module for module in own if module in inlined]
            if all(places[m] == 1 and not has_hooks(m) for m in (*found, *between)):
                chains.append(SignChain(*(names[module] for module in found)))
    return chains


def _layers_in(module: nn.Module, linked: set[nn.Module]) -> int:
    return sum(inner in linked for inner in module.modules())


def _inside(block: nn.Module, inlined: set[nn.Module]) -> Iterator[nn.Module]:
    """The modules that a block calls, itself or through those that are inlined."""
    for child in block.children():
        yield child
        if child in inlined:
            yield from _inside(child, inlined)


def _chains_in(
    block: nn.Module, inlined: set[nn.Module], linked: set[nn.Module]
) -> set[tuple[nn.Module, nn.Module, nn.Module]]:
    """Those that hold with optional arguments given and left out: torch.fx does not see a branch on ``is None``."""
    parameters = inspect.signature(type(block).forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    found = []
    for constants in (None, defaults):
        try:
            graph = _Tracer(inlined).trace(block, constants)
        except Exception:  # a forward can do anything with what stands for its input: it is left as it is
            return set()
        found.append(set(_chains_of(block, graph, linked)))
    return found[0] & found[1]


class _Tracer(Tracer):
    """Takes modules whole but for those that are inlined, which hold one layer to link."""

    def __init__(self, inlined: set[nn.Module]) -> None:
        super().__init__()
        self._inlined = inlined

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._inlined

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Under a decorator that passes everything on, as transformers' for checkpointing does.
        return super().create_args_for_root(inspect.unwrap(root_fn), is_module, concrete_args)

    def keys(self, obj: fx.Proxy) -> Any:
        return iter(())  # of **kwargs, which go to modules that are taken whole


def _chains_of(
    block: nn.Module, graph: fx.Graph, linked: set[nn.Module]
) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    called = {node: block.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(called.values())
    for node, layer in called.items():
        function = _only_user(node)
        reader = _only_user(function)
        if function not in called or reader not in called:
            continue
        modules = layer, called[function], called[reader]
        are_linked = layer in linked and modules[2] in linked and _is_function_of_each_value(modules[1])
        if are_linked and all(calls[module] == 1 for module in modules):
            yield modules


def _only_user(node: fx.Node | None) -> fx.Node | None:
    """The one node that reads a node, if that takes nothing else."""
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 and users[0].args == (node,) and not users[0].kwargs else None


def _is_function_of_each_value(module: nn.Module) -> bool:
    """Whether a module, in eval mode, gives for each value what depends on that value alone."""
    if isinstance(module, ProgressiveActivation):
        return module.committed
    return isinstance(module, SignKeeping) or (not module.training and is_pointwise(module))
