"""A packed graph as JSON and tensors.

``check_graph`` compares every name, target, argument and setting with closed lists before a module or a graph is made:
torch.fx pastes names and targets into the source text of the network's forward, so what passes must be safe there. What
is written is checked too, so that a file that is written can be read.
"""

from __future__ import annotations

import keyword
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.files.calls import (
    FUNCTION_NAMES,
    FUNCTION_SIGNATURES,
    FUNCTIONS,
    KEEPS_LISTS,
    METHOD_SIGNATURES,
)
from stompp_kernels.conversion.files.float_modules import (
    check_float_module,
    check_float_module_call,
    float_module_from_json,
    float_module_to_json,
)
from stompp_kernels.conversion.files.kinds import BOOLEAN, NODE, NONE, NUMBER, TEXT, Kind, check_call, choice, shown
from stompp_kernels.conversion.files.layers import (
    PACKED_NAMES,
    check_packed,
    check_packed_call,
    packed_from_json,
    packed_to_json,
)
from stompp_kernels.nn.packed import PackedLayer

_NODE_KEYS = {"name", "op", "target", "args", "kwargs"}
_OPS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,2047}")
# Names that the text made by torch.fx uses itself.
_RESERVED = ("self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "getattr", "slice")
_DEFAULT = NONE | BOOLEAN | NUMBER | TEXT
_ATTRIBUTE = choice("parameter", "buffer")
_PAIR = Kind("a pair", lambda v: type(v) is list and len(v) == 2 and TEXT.holds(v[0]))
_MOST_PARTS, _MOST_CHARACTERS = 64, 1024  # of a module's name
_DEEPEST_OUTPUT = 16
_WHAT_TO_DO = "write it with functions that the format lists (docs/file-format.md), or use sk.export_packed"


def graph_to_json(packed: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of a traced network.

    Raises:
        ValueError: it holds what the format does not know; the message names module or node.
    """
    structure: dict[str, Any] = {"modules": {}, "attributes": {}, "graph": []}
    tensors: dict[str, Tensor] = {}
    attributes = {}
    aliases: dict[fx.Node, fx.Node] = {}
    for node in packed.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target not in structure["modules"]:
            module = packed.get_submodule(target)
            structure["modules"][target] = _module_to_json(target, module)
            tensors |= module.state_dict(prefix=f"{target}.")
        elif node.op == "get_attr":
            attributes[target] = _attribute_of(packed, node)
        if (same_as := _passes_on(node)) is not None:
            aliases[node] = aliases.get(same_as, same_as)
        else:
            structure["graph"].append(_node_to_json(node, aliases))
    for name in attributes.keys() - tensors.keys():
        tensors[name] = attributes[name]
        structure["attributes"][name] = "parameter" if isinstance(attributes[name], nn.Parameter) else "buffer"
    check_graph(structure)
    return structure, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def graph_from_json(structure: Mapping[str, Any], tensors: Mapping[str, Tensor], copy: bool) -> fx.GraphModule:
    """The network of a structure that :func:`check_graph` accepts, with these tensors.

    Raises:
        ValueError: the tensors are not those of its modules.
    """
    modules, attributes = structure["modules"], structure["attributes"]
    own: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    for key, tensor in tensors.items():
        if key not in attributes:
            owner = next((prefix for prefix in _prefixes(key) if prefix in modules), None)
            if owner is None:
                raise ValueError(f"no module has the tensor {shown(key)}")
            own[owner][key.removeprefix(f"{owner}.")] = tensor
    root = nn.Module()
    for name, spec in modules.items():
        _parent_in(root, name).add_module(name.rpartition(".")[2], _module_from_json(spec, own[name], copy))
    for name, kind in attributes.items():
        if name not in tensors:
            raise ValueError(f"the file lacks the tensor {shown(name)}")
        tensor = tensors[name].clone() if copy else tensors[name]
        parent, field = _parent_in(root, name), name.rpartition(".")[2]
        if kind == "parameter":
            parent.register_parameter(field, nn.Parameter(tensor, requires_grad=False))
        else:
            parent.register_buffer(field, tensor)
    return fx.GraphModule(root, _graph_of(structure["graph"]))


def check_graph(structure: Mapping[str, Any]) -> None:
    """Raises ValueError unless everything in a structure is listed, and what calls name is there."""
    if structure.keys() != {"modules", "attributes", "graph"}:
        raise ValueError(f"a structure must have modules, attributes and a graph, got {shown(sorted(structure))}")
    modules, attributes, graph = (structure[key] for key in ("modules", "attributes", "graph"))
    if type(modules) is not dict or type(attributes) is not dict or type(graph) is not list:
        raise ValueError("modules and attributes must be objects, the graph must be a list")
    if both := modules.keys() & attributes.keys():
        raise ValueError(f"{shown(sorted(both))} cannot be modules and attributes")
    names = {*modules, *attributes}
    for name in names:
        _check_path(name)
        if outer := next((prefix for prefix in _prefixes(name) if prefix in names), None):
            raise ValueError(f"{shown(name)} cannot lie in {shown(outer)}, which is a module or tensor of the file")
    for name, spec in modules.items():
        if type(spec) is not dict or "type" not in spec:
            raise ValueError(f"module {shown(name)} must be an object with a type, got {shown(spec)}")
        packed = type(spec["type"]) is str and spec["type"] in PACKED_NAMES
        (check_packed if packed else check_float_module)(name, spec)
    for name, kind in attributes.items():
        _ATTRIBUTE.check(f"attribute {shown(name)}", kind)
    _check_nodes(graph, modules, attributes)


def upgraded(structure: Any, version: int) -> Any:
    """A structure of an older version in the form of this one; what does not fit is left for the check to refuse."""
    if type(structure) is not dict or not {"modules", "graph"} <= structure.keys():
        return structure
    modules, graph = structure["modules"], structure["graph"]
    if type(graph) is list:
        graph = [_without_shape(node) for node in graph]
    if version == 1 and type(modules) is dict:
        modules = {name: _with_epilogue(spec) for name, spec in modules.items()}
    return {**structure, "modules": modules, "attributes": {}, "graph": graph}


def _without_shape(node: Any) -> Any:
    """Versions 1 and 2 call a function "shape" where version 3 reads an attribute."""
    shape = type(node) is dict and node.get("op") == "call_function" and node.get("target") == "shape"
    if not shape or type(node.get("args")) is not list or len(node["args"]) != 1:
        return node
    return {**node, "target": "getattr", "args": [*node["args"], "shape"]}


def _with_epilogue(spec: Any) -> Any:
    """Version 1 has one epilogue for each number of threshold rows."""
    if type(spec) is not dict or type(spec.get("type")) is not str or spec["type"] not in PACKED_NAMES:
        return spec
    return {**spec, "writes": "bits" if spec.get("threshold_rows") else "floats", "fused": False}


# Names


@cache
def _taken() -> tuple[frozenset[str], frozenset[str]]:
    """Attributes of every module, and of every torch.fx.GraphModule, in whose places no submodule can be."""
    plain, graph = nn.Module(), fx.GraphModule(nn.Module(), fx.Graph())
    return frozenset({*dir(plain), *vars(plain)}), frozenset({*dir(graph), *vars(graph)})


def _check_path(name: str) -> None:
    """Raises ValueError unless a dotted name can be pasted into source text as torch.fx does it, and leads to itself.

    torch.fx writes a part that is an identifier behind a dot, where Python normalizes it, and any other into a string.
    It looks for "# COUNTER" in the text that it has made.
    """
    parts = name.split(".")
    if len(name) > _MOST_CHARACTERS or len(parts) > _MOST_PARTS:
        raise ValueError(f"{shown(name)} is too long for a name")
    everywhere, at_top = _taken()
    for index, part in enumerate(parts):
        plain = bool(part) and part.isprintable() and not set(part) & set("\"'\\#")
        if not plain or part.startswith("__") or unicodedata.normalize("NFKC", part) != part:
            raise ValueError(f"{shown(name)} is no name of a module or tensor")
        if keyword.iskeyword(part) or part in (everywhere if index else at_top):
            raise ValueError(f"{shown(name)} is no name of a module or tensor: {shown(part)} is reserved")


def _prefixes(name: str) -> Iterator[str]:
    """The names of what holds a name, from the nearest on."""
    while (name := name.rpartition(".")[0]) != "":
        yield name


def _parent_in(root: nn.Module, name: str) -> nn.Module:
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


# Nodes


def _check_nodes(graph: Sequence[Any], modules: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    known: set[str] = set()
    inputs: set[str] = set()
    for index, node in enumerate(graph):
        if type(node) is not dict or node.keys() != _NODE_KEYS:
            raise ValueError(f"a node must have {sorted(_NODE_KEYS)}, got {shown(node)}")
        name, op, target, args, kwargs = (node[key] for key in ("name", "op", "target", "args", "kwargs"))
        _check_identifier("a node's name", name)
        if name in known:
            raise ValueError(f"two nodes have the name {name!r}")
        if type(op) is not str or op not in _OPS:
            raise ValueError(f"unknown graph op {shown(op)}")
        if type(target) is not str or type(args) is not list or type(kwargs) is not dict:
            raise ValueError(f"node {name!r} must have a target of text, a list of args and an object of kwargs")
        for value in (*args, *kwargs.values()):
            _check_references(name, value, known)
        if op == "placeholder":
            _check_placeholder(node, inputs, known)
        elif (op == "output") != (index == len(graph) - 1):
            raise ValueError(f"the last node, and no other, must be the output, got {shown(name)}")
        else:
            _check_target(node, modules, attributes)
        known.add(name)
    if not graph or graph[-1]["op"] != "output":
        raise ValueError("the last node must be the output")
    own = {node["target"]: node["name"] for node in graph if node["op"] == "placeholder"}
    for node in graph:
        # An input's name is a variable of the forward that is made, as are those of the nodes.
        if own.get(node["name"], node["name"]) != node["name"]:
            raise ValueError(f"node {node['name']!r} has the name of another input")


def _check_identifier(what: str, name: Any) -> None:
    if type(name) is not str or _IDENTIFIER.fullmatch(name) is None or keyword.iskeyword(name):
        raise ValueError(f"{what} must be an identifier, got {shown(name)}")
    if name in _RESERVED or name.startswith("__"):
        raise ValueError(f"{what} must not be {name!r}, which is reserved")


def _check_placeholder(node: Mapping[str, Any], inputs: set[str], known: set[str]) -> None:
    target, args = node["target"], node["args"]
    _check_identifier("an input", target)
    if target in inputs or len(inputs) != len(known):
        raise ValueError(f"input {target!r} must be the only one of its name, and before all other nodes")
    if node["kwargs"] or len(args) > 1:
        raise ValueError(f"input {target!r} must have one default or none, got {shown(args)}")
    for default in args:
        _DEFAULT.check(f"the default of input {target!r}", default)
    inputs.add(target)


def _check_target(node: Mapping[str, Any], modules: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    name, op, target, args, kwargs = (node[key] for key in ("name", "op", "target", "args", "kwargs"))
    if op == "call_module":
        if target not in modules:
            raise ValueError(f"node {name!r} calls {shown(target)}, which is no module of the file")
        check = check_packed_call if modules[target]["type"] in PACKED_NAMES else check_float_module_call
        check(target, modules[target], node)
    elif op == "call_function":
        if target not in FUNCTION_SIGNATURES:
            raise ValueError(f"unknown function {shown(target)}")
        check_call(f"function {target!r}", FUNCTION_SIGNATURES[target], args, kwargs)
    elif op == "call_method":
        if target not in METHOD_SIGNATURES:
            raise ValueError(f"unknown method {shown(target)}")
        if not args or not NODE.holds(args[0]):
            raise ValueError(f"method {target!r} must be called on a node, got {shown(args)}")
        check_call(f"method {target!r}", METHOD_SIGNATURES[target], args, kwargs)
    elif kwargs or len(args) != (op == "output"):
        raise ValueError(f"node {name!r} has arguments that a node of op {op!r} does not take")
    elif op == "get_attr" and target not in attributes and not _is_tensor_of(modules, target):
        raise ValueError(f"node {name!r} reads {shown(target)}, which is no attribute of the file")
    elif op == "output":
        _check_output(args[0], 0)


def _is_tensor_of(modules: Mapping[str, Any], target: str) -> bool:
    """Whether a target may be a float module's own tensor, which is read beside the module's calls."""
    owner, _, field = target.rpartition(".")
    return owner in modules and modules[owner]["type"] not in PACKED_NAMES and field in _TENSOR_FIELDS


_TENSOR_FIELDS = ("weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias")


def _check_output(value: Any, depth: int) -> None:
    """Raises ValueError unless a value is made of nodes, constants, lists and objects with identifiers as keys."""
    if depth > _DEEPEST_OUTPUT:
        raise ValueError("the output lies in too many lists")
    if type(value) is list:
        inner = value
    elif type(value) is dict and value.keys() == {"list"} and type(value["list"]) is list:
        inner = value["list"]
    elif type(value) is dict and value.keys() == {"dict"} and type(value["dict"]) is list:
        if not all(map(_PAIR.holds, value["dict"])):
            raise ValueError(f"a dict of the output must be pairs of a text and a value, got {shown(value)}")
        inner = [one for _, one in value["dict"]]
    else:
        (NODE | NONE | BOOLEAN | NUMBER).check("a value of the output", value)
        return
    for one in inner:
        _check_output(one, depth + 1)


def _check_references(name: str, value: Any, known: set[str]) -> None:
    """Raises ValueError where a value names a node that is not before this one."""
    left = [value]
    while left:
        value = left.pop()
        if type(value) is list:
            left.extend(value)
        elif type(value) is dict:
            if NODE.holds(value) and value["node"] not in known:
                raise ValueError(f"node {name!r} reads {shown(value['node'])}, which is no node before it")
            left.extend(value.values())


# Modules and attributes


def _module_to_json(name: str, module: nn.Module) -> dict[str, Any]:
    if isinstance(module, PackedLayer):
        return packed_to_json(module)
    spec = float_module_to_json(name, module)
    return {**spec, "arguments": {key: _value_to_json(value, {}, False) for key, value in spec["arguments"].items()}}


def _module_from_json(spec: Mapping[str, Any], tensors: dict[str, Tensor], copy: bool) -> nn.Module:
    if spec["type"] in PACKED_NAMES:
        return packed_from_json(spec, tensors, copy)
    arguments = {key: _value_from_json(value, {}) for key, value in spec["arguments"].items()}
    return float_module_from_json(spec, arguments, tensors, copy)


def _attribute_of(packed: fx.GraphModule, node: fx.Node) -> Tensor:
    value: Any = packed
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"attribute {node.target!r} of type {type(value).__name__}{_place_of(node)} cannot be saved in a packed "
            "network, which holds tensors only"
        )
    return value


# To JSON


def _passes_on(node: fx.Node) -> fx.Node | None:
    """What a node returns unchanged: torchvision's stochastic depth does nothing in eval mode."""
    of_torchvision = getattr(node.target, "__module__", "") == "torchvision.ops.stochastic_depth"
    if node.op != "call_function" or not of_torchvision:
        return None
    training = node.kwargs.get("training", node.args[3] if len(node.args) > 3 else True)
    return node.args[0] if training is False else None


def _node_to_json(node: fx.Node, aliases: Mapping[fx.Node, fx.Node]) -> dict[str, Any]:
    target = str(node.target)
    if node.op == "call_function":
        if node.target not in FUNCTION_NAMES:
            raise ValueError(
                f"function {node.target!r}{_place_of(node)} cannot be saved in a packed network; {_WHAT_TO_DO}"
            )
        target = FUNCTION_NAMES[node.target]
    elif node.op == "call_method" and target not in METHOD_SIGNATURES:
        raise ValueError(f"method {target!r}{_place_of(node)} cannot be saved in a packed network; {_WHAT_TO_DO}")
    keep = node.op == "output" or target in KEEPS_LISTS

    def to_json(value: Any) -> Any:
        try:
            return _value_to_json(value, aliases, keep)
        except ValueError as error:
            raise ValueError(f"{error}{_place_of(node)}") from error

    args = [to_json(value) for value in node.args]
    kwargs = {key: to_json(value) for key, value in node.kwargs.items()}
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def _place_of(node: fx.Node) -> str:
    """Where a node comes from, as far as its tracer has noted it."""
    text = f" (node {node.name!r}"
    trace = node.stack_trace
    if trace:
        lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
        text += f", {lines[-1]}" if lines else ""
    return f"{text})"


def _value_to_json(value: Any, aliases: Mapping[fx.Node, fx.Node], keep_lists: bool) -> Any:
    def inner(v: Any) -> Any:
        return _value_to_json(v, aliases, keep_lists)

    if isinstance(value, fx.Node):
        return {"node": aliases.get(value, value).name}
    if isinstance(value, (list, tuple)):
        listed = [inner(v) for v in value]
        return {"list": listed} if keep_lists and isinstance(value, list) else listed
    if isinstance(value, dict):
        return {"dict": [[key, inner(v)] for key, v in value.items()]}  # in their order, which objects lose
    if isinstance(value, slice):
        return {"slice": [inner(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if value is Ellipsis:
        return {"ellipsis": True}
    for key, kind in (("dtype", torch.dtype), ("memory_format", torch.memory_format)):
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device) and value.index is None:
        return {"device": value.type}
    raise ValueError(f"argument {value!r} cannot be saved in a packed network")


# From JSON

_FROM_OBJECT: dict[str, Callable[[Any], Any]] = {
    "ellipsis": lambda _: Ellipsis,
    "float": float,
    "dtype": lambda name: getattr(torch, name),
    "memory_format": lambda name: getattr(torch, name),
    "device": torch.device,
}


def _value_from_json(value: Any, made: Mapping[str, fx.Node]) -> Any:
    """The value that a checked piece of JSON stands for."""
    if type(value) is list:
        return tuple(_value_from_json(v, made) for v in value)
    if type(value) is not dict:
        return value
    ((key, inner),) = value.items()
    if key == "node":
        return made[inner]
    if key == "list":
        return [_value_from_json(v, made) for v in inner]
    if key == "dict":
        return {name: _value_from_json(v, made) for name, v in inner}
    if key == "slice":
        return slice(*(_value_from_json(v, made) for v in inner))
    return _FROM_OBJECT[key](inner)


def _graph_of(nodes: Sequence[Mapping[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for spec in nodes:
        op, target = spec["op"], spec["target"]
        called = FUNCTIONS[target] if op == "call_function" else target
        args = tuple(_value_from_json(value, made) for value in spec["args"])
        kwargs = {key: _value_from_json(value, made) for key, value in spec["kwargs"].items()}
        made[spec["name"]] = graph.create_node(op, called, args, kwargs, spec["name"])
    graph.lint()
    return graph
