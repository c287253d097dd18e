"""A model's forward as a graph of which each committed layer is a node."""

from __future__ import annotations

import functools
from typing import Any

from torch import fx, nn

from stompp_kernels.conversion.packing.arguments import TracedArguments
from stompp_kernels.conversion.tracing import Tracer
from stompp_kernels.nn import BinaryLayer, BinaryMatmul, ProgressiveActivation
from stompp_kernels.nn.sign_keeping import SIGN_KEEPING

_WHOLE = (BinaryLayer, BinaryMatmul, ProgressiveActivation)
_LEAVES = (*_WHOLE, *SIGN_KEEPING.values())


class LayersNotCalledError(ValueError):
    """The forward could be traced, and does not call all committed layers."""


class PackedTracer(Tracer):
    """Keeps the progressive modules whole, and no other module that holds one, of torch.nn neither.

    Args:
        arguments: of the forward; None: all are inputs, as when a packed network is unpickled.
        proxy_buffers: record what is computed of buffers alone, where it is a constant of the graph else.
    """

    follows_wrapped = True

    def __init__(self, arguments: TracedArguments | None = None, proxy_buffers: bool = False) -> None:
        super().__init__()
        self._arguments = arguments
        self.proxy_buffer_attributes = proxy_buffers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _LEAVES):
            return True
        return super().is_leaf_module(m, module_qualified_name) and not _holds_binary_layers(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        if self._arguments is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        args, kwargs = self._arguments.make(lambda name, *default: self.create_proxy("placeholder", name, default, {}))
        return functools.partial(root_fn, **kwargs), [self.root, *args]


def trace_model(model: nn.Module, example_inputs: Any = None) -> fx.Graph:
    """The graph of a model's forward.

    Args:
        model: the caller's own, in eval mode.
        example_inputs: see :class:`TracedArguments`. Numbers among them are inputs where tracing can follow them.

    Raises:
        LayersNotCalledError: names those.
        Exception: whatever the forward raises when it is given what stands for its inputs.
    """
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        graph = _trace(model, example_inputs, proxy_buffers=False)
    finally:
        changed = [(buffer, values) for buffer, version, values in buffers if buffer._version != version]
        for buffer, values in changed:
            buffer.copy_(values)
    if changed:  # the forward changes tensors of its own, which must happen at each call, and not now
        graph = _trace(model, example_inputs, proxy_buffers=True)
    _placeholders_first(graph)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    kinds = BinaryLayer, BinaryMatmul
    committed = {name for name, module in model.named_modules() if isinstance(module, kinds) and module.committed}
    missing = sorted(committed - called)
    if missing:
        raise LayersNotCalledError(
            f"the forward does not call the committed layers {missing}: it reads their weights itself, or leaves them "
            "out for these arguments, so they cannot be packed"
        )
    return graph


def _trace(model: nn.Module, example_inputs: Any, proxy_buffers: bool) -> fx.Graph:
    arguments = TracedArguments(model, example_inputs)
    try:
        return PackedTracer(arguments, proxy_buffers).trace(model)
    except Exception:
        if not arguments.numbers:
            raise
        return PackedTracer(TracedArguments(model, example_inputs, fix_numbers=True), proxy_buffers).trace(model)


def _placeholders_first(graph: fx.Graph) -> None:
    """What a placeholder's items and checks made stands behind all placeholders, as readers of graphs expect it."""
    nodes = list(graph.nodes)
    first = next(node for node in nodes if node.op != "placeholder")
    for node in nodes[nodes.index(first) :]:
        if node.op == "placeholder":
            first.prepend(node)


def torch_modules_with_binary_layers(model: nn.Module) -> list[str]:
    """Names of torch's own modules, containers of modules aside, that hold binary layers."""
    containers = nn.Sequential, nn.ModuleList, nn.ModuleDict
    return [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("torch.nn")
        and not isinstance(module, containers)
        and _holds_binary_layers(module)
    ]


def _holds_binary_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, _WHOLE) for inner in module.modules())
