"""Rewrites the forward of one module so that each place in it that applies a ReLU calls a module of its own."""

from __future__ import annotations

import copy
import functools
import keyword
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from stompp_kernels.conversion.tracing import Tracer
from stompp_kernels.progression.example_run import has_own_forward

# Activations that clip/sign takes the place of.
RELU_LIKE = (nn.ReLU, nn.ReLU6, nn.Hardtanh)


def is_relu_like(module: nn.Module) -> bool:
    """Whether a module computes what its ReLU-like class does, and no more."""
    forwards = (nn.ReLU.forward, nn.Hardtanh.forward)
    return isinstance(module, RELU_LIKE) and type(module).forward in forwards and not has_own_forward(module)


def split_block(
    block: nn.Module,
    constants: Mapping[str, Any],
    functions: Mapping[Any, Callable[..., nn.Module | None]] | None = None,
) -> None:
    """Rewrites a module's forward so that each place in it that applies a ReLU-like activation calls another module.

    Of a module that is called at several places the first keeps it and the others get copies, ``relu_1``, ``relu_2``,
    ...; functional ones (relu, relu6, hardtanh, clamp at 0 or between two numbers) become modules with such names. The
    block stays the object that it is, with its parameters, buffers, submodules, methods and hooks, and computes the
    same. Its class becomes a subclass of its class that differs in ``forward``: what torch.fx reads from it, submodules
    taken whole. It can be copied, pickled and compiled.

    Args:
        constants: arguments of the forward that it may branch on, with their values; other values are then refused.
        functions: other functions to become modules, in the place of the ReLU-like ones, each with what makes its
            module of the arguments after the input.

    Raises:
        ValueError: torch.fx cannot follow the forward, or not all that it does; the message says why.
    """
    if isinstance(block, fx.GraphModule):
        _split_graph(block, block.graph, functions)
        block.recompile()
        return
    graph = _read_forward(block, constants)
    _split_graph(block, graph, functions)
    source, scope = _source_of(graph)
    names = tuple(item for item in scope.items() if item[0] not in _names_of_fx())
    original: Any = type(block)
    block.__class__ = _with_forward(original, source, names)


class _Tracer(Tracer):
    """Takes submodules whole, and follows the block's buffers and training flag as it does its input."""

    proxy_buffer_attributes = True

    def __init__(self, constants: Mapping[str, Any]) -> None:
        super().__init__()
        self._constants = constants
        self._autocast_depth = _autocast_depth()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for index, value in enumerate(args):
            name = str(value.node.target) if isinstance(value, fx.Proxy) else ""
            if name in self._constants:
                constant = args[index] = self._constants[name]
                torch._assert(value == constant, f"{name} must be {constant!r}, as in the example inputs of sk.prepare")
        return function, args

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled() or _autocast_depth() != self._autocast_depth:
            raise fx.proxy.TraceError("it switches gradients or autocast for a part of it")
        return super().create_node(*args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if obj.node.target == "training":
            raise fx.proxy.TraceError("it branches on self.training")
        return super().to_bool(obj)


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _read_forward(block: nn.Module, constants: Mapping[str, Any]) -> fx.Graph:
    """The graph of a block's forward, which serves both modes."""
    if "forward" in vars(block):
        raise ValueError("its forward is not that of its class")
    graphs = []
    for training in (False, True):
        with _submodules_in_mode(block, training), _no_side_effects(block):
            graphs.append(_trace(block, constants))
    in_eval, in_training = map(_source_of, graphs)
    if in_eval[0] != in_training[0]:
        raise ValueError("it depends on the training flags of its submodules")
    return graphs[0]


@torch.enable_grad()
def _trace(block: nn.Module, constants: Mapping[str, Any]) -> fx.Graph:
    tracer = _Tracer(constants)
    original = type(block)
    flag = property(lambda _: tracer.create_proxy("get_attr", "training", (), {}))
    block.__class__ = type(original.__name__, (original,), {"training": flag})
    try:
        graph = tracer.trace(block)
    except Exception as error:  # a forward can do anything with what stands for its input
        raise ValueError(f"torch.fx cannot follow it: {type(error).__name__}: {error}") from error
    finally:
        block.__class__ = original
    for node in graph.nodes:
        node.type = None  # an annotation may name what only the block's own file knows
    return graph


@contextmanager
def _submodules_in_mode(block: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in block.modules() if module is not block]
    try:
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _no_side_effects(block: nn.Module) -> Iterator[None]:
    """Refuses a forward that changes its module or draws random numbers, for in later runs it would not."""
    stores = [
        (store, dict(store))
        for module in block.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # its stores are no dicts
        for store in (vars(module), module._parameters, module._buffers, module._modules)
    ]
    random_states = _random_states()
    yield
    for store, before in stores:
        changed = [name for name in store if name not in before or store[name] is not before[name]]
        if changed or len(store) < len(before):
            raise ValueError(f"it sets attributes, or makes tensors that do not depend on its input: {changed}")
    if random_states != _random_states():
        raise ValueError("it draws random numbers that do not depend on its input")


def _random_states() -> tuple[Any, ...]:
    numpy_state = str(np.random.get_state(legacy=False))  # noqa: NPY002 (what models draw from)
    return random.getstate(), torch.get_rng_state().tolist(), numpy_state


def _split_graph(block: nn.Module, graph: fx.Graph, functions: Mapping[Any, Any] | None) -> None:
    seen: set[nn.Module] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and functions is None:
            module = block.get_submodule(node.target)
            if is_relu_like(module) and module in seen:
                node.target = _add(block, node.target.replace(".", "_"), copy.deepcopy(module))
            seen.add(module)
        elif (found := _as_module(node, _MODULES if functions is None else functions)) is not None:
            x, module = found
            with graph.inserting_before(node):
                called = graph.call_module(_add(block, type(module).__name__.lower(), module), (x,))
            node.replace_all_uses_with(called)
            graph.erase_node(node)


def _source_of(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """The source of a graph's forward, and the names that it uses.

    torch.fx writes the names of submodules and parameters into it as they are, be they keywords or text with quotes,
    and calls what a submodule named "self" returns ``self``. So the module gets another name here, and so do those of
    its attributes that are not plain, which then become calls of getattr.
    """
    plain: dict[str, str] = {}
    kept = [(node, node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    for node, target in kept:
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in target.split(".")):
            node.target = plain.setdefault(target, f"_stompp_target_{len(plain)}_")
    code = graph.python_code("_stompp_module_")
    for node, target in kept:
        node.target = target
    source = code.src.replace("def forward(self", "def forward(_stompp_module_", 1)
    for target, name in plain.items():
        access = functools.reduce(
            lambda owner, part: f"getattr({owner}, {part!r})", target.split("."), "_stompp_module_"
        )
        source = source.replace(f"_stompp_module_.{name}", access)
    return source, code.globals


def _add(block: nn.Module, base: str, activation: nn.Module) -> str:
    number = 1
    while hasattr(block, f"{base}_{number}"):
        number += 1
    block.add_module(f"{base}_{number}", activation.train(block.training))
    return f"{base}_{number}"


def _clamp(min: Any = None, max: Any = None, inplace: bool = False) -> nn.Module | None:
    if max is None:
        return nn.ReLU(inplace) if min == 0 else None
    return None if min is None else nn.Hardtanh(min, max, inplace)


_clamp_ = functools.partial(_clamp, inplace=True)
# Called with the arguments after the input, they make the module that computes the same.
_MODULES: dict[Any, Callable[..., nn.Module | None]] = {
    F.relu: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.hardtanh_: functools.partial(nn.Hardtanh, inplace=True),
    torch.relu: nn.ReLU,
    torch.relu_: functools.partial(nn.ReLU, inplace=True),
    torch.clamp: _clamp,
    torch.clamp_: _clamp_,
    torch.clamp_min: _clamp,
    torch.clamp_min_: _clamp_,
}
_METHODS = ("relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_min_")


def module_of_function(
    function: Any, args: Sequence[Any], keywords: Mapping[str, Any], functions: Mapping[Any, Any] | None = None
) -> nn.Module | None:
    """The module that computes what a functional activation does with these arguments after its input, if any does."""
    try:
        make = (_MODULES if functions is None else functions).get(function)
    except TypeError:  # not hashable, so not one of them
        return None
    return None if make is None else make(*args, **keywords)


def _as_module(node: fx.Node, functions: Mapping[Any, Any]) -> tuple[Any, nn.Module] | None:
    """What a functional activation is applied to, and a module that computes the same."""
    function = node.target
    if node.op == "call_method":
        function = getattr(torch, str(function)) if function in _METHODS else None
    if function not in functions:
        return None
    keywords = dict(node.kwargs)
    args: list[Any] = [*node.args]
    x, *others = [keywords.pop("input"), *args] if "input" in keywords else args
    if any(isinstance(value, fx.Node) for value in (*others, *keywords.values())):
        return None
    module = module_of_function(function, others, keywords, functions)
    return None if module is None else (x, module)


@functools.cache
def _names_of_fx() -> dict[str, Any]:
    """What the code that torch.fx writes takes for granted."""
    return fx.Graph().python_code("self").globals


@functools.cache
def _with_forward(original: Any, source: str, names: tuple[tuple[str, Any], ...]) -> Any:
    """The subclass of ``original`` with this forward, under the same name."""
    scope = {**_names_of_fx(), **dict(names)}
    try:
        code = compile(source, f"<forward of {original.__qualname__}>", "exec")
    except SyntaxError as error:
        raise ValueError(f"torch.fx cannot write it down again: {error}") from error
    exec(code, scope)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (original, source, names), *super(made, self).__reduce_ex__(protocol)[2:]

    members = {
        "forward": scope["forward"],
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    made: Any = type(original.__name__, (original,), members)
    return made


def _rebuild(original: Any, source: str, names: tuple[tuple[str, Any], ...]) -> nn.Module:
    kind = _with_forward(original, source, names)
    return kind.__new__(kind)
