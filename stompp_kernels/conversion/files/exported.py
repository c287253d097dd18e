"""A packed network as torch.export reads it: a graph for those that keep a forward of their own, which no file holds.

Modules that a file can hold stay modules: torch.export sees one opaque operator for each call. What is left, the
forward's own arithmetic, becomes PyTorch's operators, whose list is in aten.py. The sizes of inputs are fixed, but for
the batch where torch.export finds that any will do.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from stompp_kernels.conversion.files.decisions import decided
from stompp_kernels.conversion.files.export import two_samples
from stompp_kernels.conversion.files.float_modules import float_module_to_json
from stompp_kernels.conversion.files.outputs import plain_results
from stompp_kernels.conversion.packing.arguments import TracedArguments
from stompp_kernels.conversion.packing.checks import require_sizes
from stompp_kernels.nn import BinaryWeightLayer, PackSigns
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.example_run import as_arguments, plain, undisturbed

_LIBRARY = torch.library.Library("stompp_files", "DEF")
_LIBRARY.define("call(Tensor[] inputs, int index) -> Tensor[]")
_numbers = itertools.count()
_HERE = object()  # stands for a tensor
_called: dict[int, _ModuleCall] = {}
_CONSTANTS = (type(None), bool, int, float, str)
# Without a result that anyone reads: what they say of sizes is said of the inputs.
_ASSERTIONS = ("aten._assert_", "aten.sym_constrain_range", "aten._assert_tensor_metadata")
# Memory that nobody wrote yet is zero in a file's network.
_FILLED: dict[Any, Any] = {
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
}
_LEFT_OUT = ("layout", "pin_memory", "generator")


@torch.library.register_fake("stompp_files::call", lib=_LIBRARY)
def _call(inputs: list[Tensor], index: int) -> list[Tensor]:
    return _called[index].run(inputs)


def exported_graph(packed: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """The network as a graph of modules and operators, equal to ``packed`` on inputs of these sizes but for rounding.

    Raises:
        ValueError: torch.export cannot read it, or it holds what the format does not know.
    """
    # A copy of the modules alone: their tensors are shared.
    shared = {id(tensor): tensor for tensor in (*packed.parameters(), *packed.buffers())}
    shared |= {id(m.weight): m.weight for m in packed.modules() if isinstance(m, PackedLayer)}
    copied = copy_module(packed, shared)
    with _opaque_modules(copied) as calls:
        program, any_batch = _program(packed, copied, example_inputs)
    graph = _Translation(packed, program, calls, example_inputs, any_batch).graph()
    network = fx.GraphModule(_root_of(packed, graph, program), graph).eval()
    network.graph.eliminate_dead_code()
    network.recompile()
    _check_equal(packed, network, example_inputs)
    return network


class _ModuleCall:
    """One call of a module that torch.export sees as an operator of tensors.

    Attributes:
        name: the module's name.
    """

    def __init__(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name, self._module = name, module
        leaves, self._spec = tree_flatten((args, kwargs))
        self._leaves = [_HERE if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._result: Any = None  # with _HERE for each tensor

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call with these in the places of its tensors."""
        own = iter(tensors)
        return tree_unflatten([next(own) if leaf is _HERE else leaf for leaf in self._leaves], self._spec)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the module's result, whose structure is kept."""
        args, kwargs = self.arguments(tensors)
        result = self._module(*args, **kwargs)
        self._result = tree_map(lambda leaf: _HERE if isinstance(leaf, Tensor) else leaf, result)
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """The module's result of its tensors."""
        own = iter(tensors)
        return tree_map(lambda leaf: next(own) if leaf is _HERE else leaf, self._result)

    def place(self, index: int) -> tuple[Any, ...]:
        """Where in the result a tensor is."""
        return [path for path in _paths(self._result) if _leaf(self._result, path) is _HERE][index]


@contextmanager
def _opaque_modules(model: nn.Module) -> Iterator[dict[int, _ModuleCall]]:
    """Inside, calls of modules that a file can hold are one operator each; gives the calls by their index."""
    calls: dict[int, _ModuleCall] = {}
    for name, module in model.named_modules():
        if _fits_in_a_file(name, module):
            kind, stand_in = type(module), cast(Any, module)
            forward = _forward_of(kind, name, copy.copy(module), calls)
            stand_in.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    try:
        yield calls
    finally:
        for index in calls:
            del _called[index]


def _fits_in_a_file(name: str, module: nn.Module) -> bool:
    if isinstance(module, (PackedLayer, BinaryWeightLayer, PackSigns)):
        return True
    try:
        return bool(float_module_to_json(name, module))
    except ValueError:
        return False


def _forward_of(kind: Any, name: str, module: nn.Module, calls: dict[int, _ModuleCall]) -> Any:
    """A forward that calls the operator, and notes the call."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        if not all(isinstance(leaf, (Tensor, *_CONSTANTS)) for leaf in leaves):
            return kind.forward(self, *args, **kwargs)
        index, call = next(_numbers), _ModuleCall(name, module, args, kwargs)
        _called[index] = calls[index] = call
        return call.result(torch.ops.stompp_files.call([leaf for leaf in leaves if isinstance(leaf, Tensor)], index))

    return forward


def _program(packed: nn.Module, model: nn.Module, example_inputs: Any) -> tuple[ExportedProgram, bool]:
    """The program of a model that stands for a packed one, and whether it takes batches of any size."""
    args, kwargs = as_arguments(example_inputs)
    batch = {0: Dim("batch")}
    error: Exception | None = None
    for any_batch in (True, False):
        given = tuple(args), dict(kwargs)
        shapes: Any = None
        if any_batch:
            if not all(_has_batch(value) for value in tree_leaves(given) if isinstance(value, Tensor)):
                continue
            given = tree_map(lambda value: two_samples(value) if isinstance(value, Tensor) else value, given)
            shapes = tree_map(lambda value: batch if isinstance(value, Tensor) else None, given)
            names = list(inspect.signature(model.forward).parameters)
            shapes = {**dict(zip(names, shapes[0], strict=False)), **shapes[1]}
        try:
            with torch.no_grad(), decided(packed, *given, stand_in=model), plain_results(model):
                return torch.export.export(model, *given, dynamic_shapes=shapes), any_batch
        except Exception as raised:  # torch.export raises a dozen kinds
            error = error or raised
    assert error is not None
    first = (str(error).strip().splitlines() or [""])[0]
    raise ValueError(
        f"torch.export cannot read its forward{_place_of(error)}: {type(error).__name__}: {first}; write that line so "
        "that no branch and no size depends on values of inputs, with torch.where for example"
    )


def _place_of(error: BaseException) -> str:
    """The innermost line of an error that is neither torch's nor this package's."""
    folders = [os.path.dirname(torch.__file__), str(Path(__file__).parents[2])]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if os.path.isabs(f.filename) and not f.filename.startswith(tuple(folders))]
    return f' (File "{own[-1].filename}", line {own[-1].lineno}, in {own[-1].name})' if own else ""


def _has_batch(value: Tensor) -> bool:
    return value.dim() > 0 and value.shape[0] > 0


class _Translation:
    """A program's graph as a graph of a file's modules, functions and attributes."""

    def __init__(
        self,
        model: nn.Module,
        program: ExportedProgram,
        calls: Mapping[int, _ModuleCall],
        example_inputs: Any,
        any_batch: bool,
    ) -> None:
        self._model, self._program, self._calls = model, program, calls
        self._inputs, self._any_batch = example_inputs, any_batch
        self._graph = fx.Graph()
        self._made: dict[fx.Node, Any] = {}
        self._packed: dict[tuple[str, fx.Node], fx.Node] = {}

    def graph(self) -> fx.Graph:
        self._make_inputs()
        for node in self._program.graph.nodes:
            if node.op == "call_function" and not str(node.target).startswith(_ASSERTIONS):
                self._made[node] = self._call(node)
            elif node.op == "output":
                flat = [self._value(value) for value in node.args[0]]
                self._graph.output(_unflattened(iter(flat), self._program.call_spec.out_spec))
        placeholders = [node for node in self._graph.nodes if node.op == "placeholder"]
        first = next(node for node in self._graph.nodes if node.op != "placeholder")
        for node in placeholders:
            first.prepend(node)
        self._graph.lint()
        return self._graph

    def _make_inputs(self) -> None:
        """Placeholders with the names of the forward's arguments, and reads of parameters and buffers."""
        tracer = fx.proxy.GraphAppendingTracer(self._graph)
        arguments = TracedArguments(self._model, self._inputs, fix_numbers=True)
        args, kwargs = arguments.make(lambda name, *default: tracer.create_proxy("placeholder", name, default, {}))
        bound = inspect.signature(self._model.forward).bind(*args, **kwargs).arguments
        given_args, given_kwargs = as_arguments(self._inputs)
        own = inspect.signature(self._model.forward).bind(*given_args, **given_kwargs).arguments
        proxies = dict(zip(_paths(own), (_leaf(bound, path) for path in _paths(own)), strict=True))
        order = iter(_paths_of_call(self._model, given_args, given_kwargs))
        for node, spec in zip(
            [n for n in self._program.graph.nodes if n.op == "placeholder"],
            self._program.graph_signature.input_specs,
            strict=True,
        ):
            if spec.kind is InputKind.USER_INPUT:
                path = next(order)
                proxy = proxies[path]
                self._made[node] = proxy.node if isinstance(proxy, fx.Proxy) else proxy
                value = _leaf(own, path)
                if isinstance(proxy, fx.Proxy) and isinstance(value, Tensor):
                    sizes = [None if self._any_batch and index == 0 else n for index, n in enumerate(value.shape)]
                    require_sizes(proxy, ".".join(map(str, path)), sizes)
            elif node.users:
                assert spec.target is not None
                self._made[node] = self._graph.get_attr(spec.target)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._value(node.args), self._value(node.kwargs)
        if node.target is torch.ops.stompp_files.call.default:
            inputs, index = args
            return self._module(self._calls[index], inputs)
        kwargs = {key: value for key, value in kwargs.items() if key not in _LEFT_OUT and value is not None}
        target: Any = _FILLED.get(node.target, node.target)
        if target is not node.target:
            kwargs.pop("memory_format", None)
        if target.__name__ == "getitem" and isinstance(node.args[0], fx.Node) and _is_module_call(node.args[0]):
            made, place = args[0], self._calls[node.args[0].args[1]].place(args[1])
            for key in place:
                made = self._graph.call_function(target, (made, key))
            return made
        # A file may not name a node after an operator such as __and__: such names are Python's.
        name = f"bits{node.name}" if target.__name__.startswith("__") else None
        made = self._graph.create_node("call_function", target, args, kwargs, name)
        made.stack_trace = node.stack_trace
        return made

    def _module(self, call: _ModuleCall, inputs: list[fx.Node]) -> fx.Node:
        """A call of a module; of signs that are packed already, their words."""
        packs = isinstance(self._model.get_submodule(call.name), PackSigns)
        if packs and (call.name, inputs[0]) in self._packed:
            return self._packed[call.name, inputs[0]]
        made = self._graph.call_module(call.name, *call.arguments(inputs))
        if packs:
            self._packed[call.name, inputs[0]] = made
        return made

    def _value(self, value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: self._made[node])


def _is_module_call(node: fx.Node) -> bool:
    return node.target is torch.ops.stompp_files.call.default


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the leaves of nested lists, tuples and dicts are."""
    if isinstance(value, Mapping):
        return [found for key, inner in value.items() for found in _paths(inner, (*path, key))]
    if isinstance(value, (list, tuple)):
        return [found for index, inner in enumerate(value) for found in _paths(inner, (*path, index))]
    return [path]


def _leaf(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _paths_of_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The same in the order in which torch.export takes inputs: by position, then by keyword as given."""
    signature = inspect.signature(model.forward)
    by_position = signature.bind_partial(*args).arguments
    return [*_paths(dict(by_position)), *_paths(kwargs)]


def _unflattened(leaves: Iterator[Any], spec: TreeSpec) -> Any:
    """The structure of an output in lists, tuples and dicts; objects with named fields become dicts."""
    if spec.is_leaf():
        return next(leaves)
    inner = [_unflattened(leaves, child) for child in spec.children()]
    if spec.type is tuple or (isinstance(spec.type, type) and issubclass(spec.type, tuple)):
        return tuple(inner)
    if spec.type is list:
        return inner
    names = spec.context
    if isinstance(names, (list, tuple)) and len(names) == len(inner) and all(isinstance(name, str) for name in names):
        return dict(zip(names, inner, strict=True))
    raise ValueError(f"its output holds a {getattr(spec.type, '__name__', spec.type)}, which no file can hold")


def _root_of(model: nn.Module, graph: fx.Graph, program: ExportedProgram) -> nn.Module:
    """A module with the submodules and tensors that a graph reads, under their names."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        parent, names = root, str(node.target).split(".")
        for part in names[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            parent.add_module(names[-1], PackSigns(module.images) if isinstance(module, PackSigns) else module)
        elif names[-1] not in parent._parameters and names[-1] not in parent._buffers:
            tensor = program.state_dict.get(node.target, program.constants.get(node.target))
            own = _tensor_of(model, node.target)
            parent.register_buffer(names[-1], (tensor if own is None else own).detach())
    return root


def _tensor_of(model: nn.Module, name: str) -> Tensor | None:
    """The model's own tensor, which the file holds once however often it is read."""
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, Tensor) else None


def _check_equal(packed: nn.Module, network: nn.Module, example_inputs: Any) -> None:
    """Raises ValueError unless both give the same bits: torch.export fixes what depends on values.

    But where attention runs by other kernels, which add in another order, rounding may differ. torch.nn and
    transformers ask for other kernels while torch.export reads them: masks are tensors then, and none are left out.
    """
    args, kwargs = as_arguments(example_inputs)
    results, kernels = [], []
    for model in (packed, network):
        with undisturbed(packed), _AttentionKernels() as attention:  # they share their buffers
            output = model(*args, **kwargs)
        results.append([leaf for leaf in tree_leaves(plain(output)) if isinstance(leaf, Tensor)])
        kernels.append(attention.calls)
    expected, found = results
    alike = _is_equal if kernels[0] == kernels[1] else _is_rounded
    if len(expected) != len(found) or not all(map(alike, expected, found)):
        raise ValueError("its graph gives another result: the forward depends on values, or keeps state")


class _AttentionKernels(TorchDispatchMode):
    """Notes which of torch's kernels for attention run, and whether they are given masks.

    Attributes:
        calls: the kernel's name, and those of the arguments for masks that it was given, for each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(word in func.name() for word in ("attention", "transformer")):
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            given = {name: value for name, value in given.items() if value is not None and value is not False}
            self.calls.append((func.name(), *(name for name in given if "mask" in name or "causal" in name)))
        return func(*args, **kwargs)


def _is_equal(expected: Tensor, found: Tensor) -> bool:
    """Whether tensors are equal to the bit, NaN to NaN."""
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return False
    return bool(((expected == found) | ((expected != expected) & (found != found))).all())


def _is_rounded(expected: Tensor, found: Tensor) -> bool:
    """Whether tensors are equal but for the order in which torch's kernels add."""
    if _is_equal(expected, found) or not expected.is_floating_point() or expected.shape != found.shape:
        return _is_equal(expected, found)
    expected, found = expected.nan_to_num(), found.nan_to_num()
    return float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())
