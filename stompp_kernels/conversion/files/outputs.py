"""Outputs as files and programs hold them: dicts in the place of objects of dataclasses, tuples of named ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from torch import fx, nn

from stompp_kernels.progression.example_run import forwards, plain


def with_plain_output(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The network, or one of the same modules whose graph gives what its output's objects hold."""
    made = [node for node in graph_module.graph.nodes if _makes_object(node)]
    if not made:
        return graph_module
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(graph_module.graph, values)
    copies = {values[node] for node in made}
    graph.output(_plain(output, copies))
    result = fx.GraphModule(graph_module, graph)
    result.graph.eliminate_dead_code(lambda node: node not in copies)
    result.meta.update(graph_module.meta)
    result.recompile()
    return result.train(graph_module.training)


@contextmanager
def plain_results(model: nn.Module) -> Iterator[None]:
    """Inside, a model that is no graph gives such an output."""

    def wrap(name: str, module: nn.Module, forward: Any) -> Any:
        return None if name else lambda *args, **kwargs: plain(forward(*args, **kwargs))

    with forwards(model, wrap):
        yield


def _makes_object(node: fx.Node) -> bool:
    kind: Any = node.target
    return node.op == "call_function" and isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))


def _plain(value: Any, made: set[fx.Node]) -> Any:
    """A value of the output with what its objects are made of, by the nodes that make them."""
    if isinstance(value, fx.Node):
        if value not in made:
            return value
        kind: Any = value.target
        bound = inspect.signature(kind).bind(*value.args, **value.kwargs)
        bound.apply_defaults()
        fields = {name: _plain(own, made) for name, own in bound.arguments.items()}
        return fields if is_dataclass(kind) else tuple(fields.values())
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(own, made) for own in value])
    if isinstance(value, dict):
        return {key: _plain(own, made) for key, own in value.items()}
    return value
