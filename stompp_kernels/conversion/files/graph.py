"""A packed graph as JSON and tensors.

``check_graph`` (graph_checks.py) compares everything with closed lists before a module or a graph is made. What is
written is checked too, so that a file that is written can be read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.files.calls import FUNCTION_NAMES, FUNCTIONS, KEEPS_LISTS, METHOD_SIGNATURES
from stompp_kernels.conversion.files.float_modules import float_module_from_json, float_module_to_json
from stompp_kernels.conversion.files.graph_checks import check_graph, prefixes
from stompp_kernels.conversion.files.kinds import shown
from stompp_kernels.conversion.files.layers import PACKED_NAMES, packed_from_json, packed_to_json
from stompp_kernels.nn.packed import PackedLayer

_WHAT_TO_DO = "write it with functions that the format lists (docs/file-format.md), or use sk.export_packed"


def graph_to_json(packed: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of a traced network.

    Raises:
        ValueError: it holds what the format does not know; the message names module or node.
    """
    structure: dict[str, Any] = {"modules": {}, "attributes": {}, "graph": []}
    tensors: dict[str, Tensor] = {}
    attributes = {}
    for node in packed.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target not in structure["modules"]:
            module = packed.get_submodule(target)
            structure["modules"][target] = _module_to_json(target, module)
            tensors |= module.state_dict(prefix=f"{target}.")
        elif node.op == "get_attr":
            attributes[target] = _attribute_of(packed, node)
        structure["graph"].append(_node_to_json(node))
    for name in attributes.keys() - tensors.keys():
        tensors[name] = attributes[name]
        structure["attributes"][name] = "parameter" if isinstance(attributes[name], nn.Parameter) else "buffer"
    check_graph(structure)
    found = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    seen: set[int] = set()
    for name, tensor in found.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen:  # as an embedding's and the last layer's: a file holds the tensors of each module
            found[name] = tensor.clone()
        seen.add(memory)
    return structure, found


def graph_from_json(structure: Mapping[str, Any], tensors: Mapping[str, Tensor], copy: bool) -> fx.GraphModule:
    """The network of a structure that :func:`check_graph` accepts, with these tensors.

    Raises:
        ValueError: the tensors are not those of its modules.
    """
    modules, attributes = structure["modules"], structure["attributes"]
    own: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    for key, tensor in tensors.items():
        if key not in attributes:
            owner = next((prefix for prefix in prefixes(key) if prefix in modules), None)
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


def _parent_in(root: nn.Module, name: str) -> nn.Module:
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def _module_to_json(name: str, module: nn.Module) -> dict[str, Any]:
    if isinstance(module, PackedLayer):
        return packed_to_json(module)
    spec = float_module_to_json(name, module)
    return {**spec, "arguments": {key: _value_to_json(value, False) for key, value in spec["arguments"].items()}}


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


def _node_to_json(node: fx.Node) -> dict[str, Any]:
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
            return _value_to_json(value, keep)
        except ValueError as error:
            raise ValueError(f"{error}{_place_of(node)}") from error

    args = [to_json(value) for value in node.args]
    kwargs = {key: to_json(value) for key, value in node.kwargs.items()}
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def _place_of(node: fx.Node) -> str:
    """Where a node comes from, as far as its tracer has noted it: the innermost line that is not of torch."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if os.path.dirname(torch.__file__) not in line] or lines
    return f" (node {node.name!r}{''.join(f', {line}' for line in own[-1:])})"


def _value_to_json(value: Any, keep_lists: bool) -> Any:
    def inner(v: Any) -> Any:
        return _value_to_json(v, keep_lists)

    if isinstance(value, fx.Node):
        return {"node": value.name}
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
