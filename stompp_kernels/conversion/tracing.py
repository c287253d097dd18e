"""A torch.fx tracer that changes nothing outside the model that it traces.

torch.fx's own patches nn.Module, math and some functions for the whole process while it traces: what other threads run
meanwhile, of any model, ends up in the graph or fails. Here the modules of the traced model become instances of
subclasses of their classes, which record calls and reads of parameters, and what calls a function that torch.fx is to
record calls a substitute. The model must be the caller's own, in no other thread's hands.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _create_wrapped_func, _wrapped_fns_to_patch
from torch.utils._pytree import tree_leaves


class Tracer(fx.Tracer):
    """As torch.fx.Tracer, of which it has the methods to override, but for the process-wide patches.

    Attributes:
        follows_wrapped: whether what functions of torch.fx.wrap do is recorded where that can be followed, and their
            call elsewhere; else always their call.
    """

    follows_wrapped = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a module's forward; see torch.fx.Tracer.trace.

        Raises:
            TypeError: ``root`` is no module.
            TraceError: its forward is not that of its class.
        """
        if not isinstance(root, nn.Module):
            raise TypeError(f"root must be a module, got {type(root).__name__}")
        if "forward" in vars(root):
            raise fx.proxy.TraceError("the model's forward was replaced by one that is not its class's")
        self.root = root
        self.root_module_name = root._get_name()
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{prefix}.{name}" if prefix else name
            for prefix, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        self.graph = fx.Graph(tracer_cls=type(self))
        with self._recording(root):
            function, args = self.create_args_for_root(type(root).forward, True, concrete_args)
            self.create_node("output", "output", (self.create_arg(function(*args)),), {})
        self.submodule_paths = {}  # as empty as torch.fx leaves it: the modules are not kept alive
        return self.graph

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As torch.fx's, with the line of the model's that made the node in its ``stack_trace``."""
        node = super().create_node(*args, **kwargs)
        node.stack_trace = node.stack_trace or _line_of_the_model()
        return node

    @contextmanager
    def _recording(self, root: nn.Module) -> Iterator[None]:
        """Inside, calls of the modules and reads of their parameters go through this tracer."""
        substitutes = _Substitutes(self._autowrap_function_ids, self.follows_wrapped)
        recording: dict[type, type] = {}
        originals = [(module, type(module), substitutes.attributes(module)) for module in root.modules()]
        try:
            for module, kind, functions in originals:
                if kind not in recording:
                    recording[kind] = self._recording_class(kind, substitutes)
                module.__class__ = recording[kind]
                vars(module).update({name: substitute for name, (_, substitute) in functions.items()})
            yield
        finally:
            for module, kind, functions in originals:
                module.__class__ = kind
                vars(module).update({name: function for name, (function, _) in functions.items()})

    def _recording_class(self, kind: Any, substitutes: _Substitutes) -> type:
        parameter_proxies: dict[str, fx.Proxy] = {}

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(module, types.MethodType(kind.__call__, module), args, kwargs)

        def get(module: nn.Module, name: str) -> Any:
            return self.getattr(name, kind.__getattr__(module, name), parameter_proxies)

        members = {"__call__": call, "__getattr__": get, "__module__": kind.__module__, "__doc__": kind.__doc__}
        members["__qualname__"] = kind.__qualname__
        members.update(substitutes.methods(kind))
        return type(kind)(kind.__name__, (_Unregistered, kind), members)


class _Unregistered:
    """Keeps the classes made here from what a model's class does with subclasses of its own, such as a registry."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class _Substitutes:
    """Copies of functions that call, by a global name, what torch.fx is to record where it is given a proxy.

    That are the functions of ``math``, and those registered by ``torch.fx.wrap``. What calls none, itself or through
    others, is left as it is; so is torch.
    """

    def __init__(self, recorded: set[int], follows_wrapped: bool) -> None:
        self._recorded = recorded  # ids of functions, wherever they are found
        self._follows_wrapped = follows_wrapped
        self._made: dict[types.FunctionType, types.FunctionType] = {}

    def methods(self, kind: type) -> dict[str, Callable[..., Any]]:
        """The methods of a class that need a substitute."""
        found: dict[str, Any] = {}
        for base in kind.__mro__:
            if not _is_of_torch(base):
                for name, value in vars(base).items():
                    found.setdefault(name, value)
        return {name: substitute for name, (_, substitute) in self._changed(found).items()}

    def attributes(self, module: nn.Module) -> dict[str, tuple[Any, Any]]:
        """The functions that a module holds and that need a substitute, with it."""
        return self._changed(vars(module))

    def _changed(self, members: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        functions = {key: f for key, f in members.items() if isinstance(f, types.FunctionType) and not _is_of_torch(f)}
        pairs = {key: (function, self._function(function)) for key, function in functions.items()}
        return {key: pair for key, pair in pairs.items() if pair[0] is not pair[1]}

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if function not in self._made:
            self._made[function] = function  # where it calls itself
            self._made[function] = self._copy_if_needed(function)
        return self._made[function]

    def _copy_if_needed(self, function: types.FunctionType) -> types.FunctionType:
        scope, names = function.__globals__, set(_names_in(function.__code__))
        changed = {}
        for name in names:
            value = scope.get(name, getattr(builtins, name, None))
            substitute = self._substitute(value, scope, name, names)
            if substitute is not value:
                changed[name] = substitute
        cells = tuple(map(self._cell, function.__closure__ or ()))
        if not changed and cells == (function.__closure__ or ()):
            return function
        copy = types.FunctionType(
            function.__code__, {**scope, **changed}, function.__name__, function.__defaults__, cells or None
        )
        copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
        copy.__dict__.update(function.__dict__)
        return copy

    def _cell(self, cell: types.CellType) -> types.CellType:
        """A cell of a closure, as a decorator's that holds what it decorates."""
        try:
            value = cell.cell_contents
        except ValueError:  # it is empty yet
            return cell
        if not isinstance(value, types.FunctionType) or _is_of_torch(value):
            return cell
        substitute = self._function(value)
        return cell if substitute is value else types.CellType(substitute)

    def _substitute(self, value: Any, scope: dict[str, Any], name: str, names: set[str]) -> Any:
        if (id(scope), name) in _wrapped_fns_to_patch or (callable(value) and id(value) in self._recorded):
            follow = self._follows_wrapped and isinstance(value, types.FunctionType)
            return _followed(value, self._function(value)) if follow else _create_wrapped_func(value)
        if isinstance(value, types.ModuleType) and not _is_of_torch(value):
            own = vars(value)
            substitutes = {key: self._substitute(own[key], own, key, set()) for key in names & own.keys()}
            if any(substitute is not own[key] for key, substitute in substitutes.items()):
                return types.SimpleNamespace(**{**own, **substitutes})
        if isinstance(value, types.FunctionType) and not _is_of_torch(value):
            return self._function(value)
        return value


def _followed(function: types.FunctionType, copy: Callable[..., Any]) -> Callable[..., Any]:
    """Records what a function does with what stands for values, or its call where that cannot be followed."""
    recorded = _create_wrapped_func(function)

    def follow(*args: Any, **kwargs: Any) -> Any:
        proxies = [value for value in tree_leaves((args, kwargs)) if isinstance(value, fx.Proxy)]
        if not proxies:
            return function(*args, **kwargs)
        graph = proxies[0].tracer.graph
        before = set(graph.nodes)
        try:
            return copy(*args, **kwargs)
        except Exception:  # it branches on values, say, which is why it is wrapped
            for node in reversed([node for node in graph.nodes if node not in before]):
                graph.erase_node(node)
            return recorded(*args, **kwargs)

    return follow


def _line_of_the_model() -> str | None:
    """The innermost line that is neither of torch nor of this package, as tracebacks write it."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.split(".")[0] not in (torch.__name__, __name__.split(".")[0]) and frame.f_code.co_name[0] != "<":
            return f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}'
        frame = frame.f_back
    return None


def _is_of_torch(value: Any) -> bool:
    name = getattr(value, "__name__" if isinstance(value, types.ModuleType) else "__module__", None) or ""
    return name.split(".")[0] == torch.__name__


def _names_in(code: types.CodeType) -> Iterator[str]:
    """What a function and those defined inside it refer to by a global name, or as an attribute."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
