"""What a packed graph of a file may hold: every name, target, argument and setting is on a closed list.

torch.fx pastes names and targets into the source text of the network's forward, so what passes must be safe there.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import fx, nn

from stompp_kernels.conversion.files.calls import FUNCTION_SIGNATURES, METHOD_SIGNATURES
from stompp_kernels.conversion.files.float_modules import check_float_module, check_float_module_call
from stompp_kernels.conversion.files.kinds import BOOLEAN, NODE, NONE, NUMBER, TEXT, Kind, check_call, choice, shown
from stompp_kernels.conversion.files.layers import PACKED_NAMES, check_packed, check_packed_call

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
_TENSOR_FIELDS = ("weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias")


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
        if outer := next((prefix for prefix in prefixes(name) if prefix in names), None):
            raise ValueError(f"{shown(name)} cannot lie in {shown(outer)}, which is a module or tensor of the file")
    for name, spec in modules.items():
        if type(spec) is not dict or "type" not in spec:
            raise ValueError(f"module {shown(name)} must be an object with a type, got {shown(spec)}")
        packed = type(spec["type"]) is str and spec["type"] in PACKED_NAMES
        (check_packed if packed else check_float_module)(name, spec)
    for name, kind in attributes.items():
        _ATTRIBUTE.check(f"attribute {shown(name)}", kind)
    _check_nodes(graph, modules, attributes)


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


def prefixes(name: str) -> Iterator[str]:
    """The names of what holds a name, from the nearest on."""
    while (name := name.rpartition(".")[0]) != "":
        yield name


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
