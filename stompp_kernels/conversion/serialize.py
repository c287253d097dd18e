"""save_packed / load_packed: a packed network in one safetensors file.

The tensors are the network's state dict, packed weights in the portable word order. The metadata hold the structure as
JSON: which module stands where and how the graph calls them. Nothing is executed or unpickled on load: modules come
from a fixed list, functions from another, and a SHA-256 over structure and tensors refuses a file that was cut short or
altered.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn

from stompp_kernels.files import replacing
from stompp_kernels.nn import (
    MaxPoolSigns,
    PackBatchNorm,
    PackedConv2d,
    PackedLinear,
    PackSigns,
    PrepackedConv2d,
    UnpackSigns,
)
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns, PackedWeight, Threshold
from stompp_kernels.ops.reference import words_for

FORMAT, VERSION = "stompp_kernels.packed", 2

# Float modules that a file may hold, with the attributes that make them again.
_FLOAT_MODULES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "bias",
        "padding_mode",
    ),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.GELU: ("approximate",),
    nn.Tanh: (),
    nn.Hardtanh: ("min_val", "max_val"),
    nn.Identity: (),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    MaxPoolSigns: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    PackBatchNorm: ("channels", "images"),
    PackSigns: ("images",),
    UnpackSigns: ("channels", "images"),
}
_FLOAT_MODULES[PrepackedConv2d] = _FLOAT_MODULES[nn.Conv2d]
_FLOAT_MODULE_NAMES = {kind.__name__: kind for kind in _FLOAT_MODULES}


def _shape(x: Tensor) -> torch.Size:
    """What fx writes as getattr(x, "shape"): the one attribute that a file may ask for."""
    return x.shape


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "iadd": operator.iadd,
    "mul": operator.mul,
    "getitem": operator.getitem,
    "shape": _shape,
    "torch.add": torch.add,
    "torch.flatten": torch.flatten,
    "torch.cat": torch.cat,
    "torch.relu": torch.relu,
    "F.relu": F.relu,
    "F.avg_pool2d": F.avg_pool2d,
    "F.max_pool2d": F.max_pool2d,
    "F.adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "F.pad": F.pad,
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
# Names end up in the Python source that torch.fx generates: nothing but an identifier or a number may pass.
_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_METHODS = ("add", "add_", "flatten", "mean", "permute", "reshape", "size", "view", "relu", "contiguous", "squeeze")


def save_packed(packed: fx.GraphModule, path: str | os.PathLike[str]) -> int:
    """Writes a packed network, whole, to one file; an existing file is replaced only once the new one is complete.

    Args:
        packed: made by ``sk.convert``.
        path: of the file, by custom ``*.safetensors``.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: ``packed`` is not such a network.
        ValueError: it holds a module or function that the format does not know; the message names it.
    """
    if not isinstance(packed, fx.GraphModule):
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")
    structure = {"modules": _modules_to_json(packed), "graph": [_node_to_json(node) for node in packed.graph.nodes]}
    text = json.dumps(structure, sort_keys=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in packed.state_dict().items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "structure": text, "sha256": _digest(text, tensors)}
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    with replacing(path) as file:
        return file.write(save(tensors, metadata))


def load_packed(path: str | os.PathLike[str]) -> fx.GraphModule:
    """Reads a network that :func:`save_packed` wrote, and packs its weights for this machine.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no packed network, is of another version, was cut short or was altered.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {os.fspath(path)!r}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is no packed network: format must be {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{os.fspath(path)!r} has version {metadata.get('version')!r}, this package reads {VERSION}")
    text = metadata.get("structure", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"{os.fspath(path)!r} was altered: its checksum does not match its contents")
    try:
        structure = json.loads(text)
        root = nn.Module()
        for name, spec in structure["modules"].items():
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            _add_submodule(root, name, _module_from_json(spec, own))
        graph = _graph_from_json(structure["graph"])
        packed = fx.GraphModule(root, graph)
        packed.load_state_dict(tensors)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError) as error:
        raise ValueError(f"{os.fspath(path)!r} holds a network that this package cannot build: {error}") from error
    return packed.eval()


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _modules_to_json(packed: fx.GraphModule) -> dict[str, Any]:
    called = dict.fromkeys(str(node.target) for node in packed.graph.nodes if node.op == "call_module")
    return {name: _module_to_json(name, packed.get_submodule(name)) for name in called}


def _module_to_json(name: str, module: nn.Module) -> dict[str, Any]:
    kind = type(module)
    if isinstance(module, PackedLayer):
        spec: dict[str, Any] = {
            "type": kind.__name__,
            "shape": list(module.weight.shape),
            "groups": module.weight.groups,
            "replaces": list(module.replaces),
            "threshold_rows": module.thresholds.shape[0] if module.has_thresholds else 0,
            "writes": module.writes,
            "fused": module.fused,
        }
        if isinstance(module, PackedConv2d):
            spec |= {key: list(getattr(module, key)) for key in ("stride", "padding", "dilation")}
            spec["padding_value"] = module.padding_value
        return spec
    if kind not in _FLOAT_MODULES:
        raise ValueError(f"module {name!r} of type {kind.__name__} cannot be saved in a packed network")
    arguments = {key: getattr(module, key) for key in _FLOAT_MODULES[kind]}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None
    return {"type": kind.__name__, "arguments": arguments}


def _module_from_json(spec: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    name = spec["type"]
    if name in ("PackedConv2d", "PackedLinear"):
        return _packed_from_json(spec, tensors)
    if name not in _FLOAT_MODULE_NAMES:
        raise ValueError(f"unknown module type {name!r}")
    kind = _FLOAT_MODULE_NAMES[name]
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in spec["arguments"].items()}
    if set(arguments) != set(_FLOAT_MODULES[kind]):
        raise ValueError(f"module type {name!r} has arguments {sorted(arguments)}")
    # Memory is taken only for a shape that the tensors in the file have.
    with torch.device("meta"):
        module = kind(**arguments)
    expected = {key: t.shape for key, t in module.state_dict().items()}
    if expected != {key: t.shape for key, t in tensors.items()}:
        raise ValueError(f"a {name} needs tensors of shapes {expected}")
    return module.to_empty(device="cpu")


def _packed_from_json(spec: dict[str, Any], tensors: dict[str, Tensor]) -> PackedLayer:
    weight = PackedWeight.from_words(tensors["weight"], spec["shape"], spec["groups"])
    if len(weight.shape) != (2 if spec["type"] == "PackedLinear" else 4):
        raise ValueError(f"a {spec['type']} has no weight of shape {list(weight.shape)}")
    N, rows = weight.shape[0], spec["threshold_rows"]
    if rows not in (0, 1, 2):
        raise ValueError(f"threshold_rows must be 0, 1 or 2, got {rows!r}")
    writes, fused = spec["writes"], spec["fused"]
    if writes not in ("floats", "bits", "both") or not isinstance(fused, bool):
        raise ValueError(f"a packed layer cannot write {writes!r} with fused {fused!r}")
    epilogue: Affine | AffineSigns | Threshold = Affine(torch.ones(N), torch.zeros(N), fused=fused)
    if writes != "floats":
        epilogue = AffineSigns(torch.ones(N), torch.zeros(N), fused=fused, floats=writes == "both")
    if rows:
        epilogue = Threshold(torch.zeros(rows, N, dtype=torch.int32), torch.zeros(words_for(N), dtype=torch.int32))
    replaces = tuple(spec["replaces"])
    if spec["type"] == "PackedLinear":
        return PackedLinear(weight, epilogue, replaces)
    pairs = {key: tuple(spec[key]) for key in ("stride", "padding", "dilation")}
    return PackedConv2d(weight, epilogue, **pairs, padding_value=spec["padding_value"], replaces=replaces)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name")


def _add_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    for part in name.split("."):
        _check_name(part)
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(last, module)


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    args = node.args
    if node.op == "call_function":
        function = node.target
        if function is getattr and args[1:] == ("shape",):
            function, args = _shape, args[:1]
        if function not in _FUNCTION_NAMES:
            raise ValueError(f"function {node.target!r} cannot be saved in a packed network")
        target = _FUNCTION_NAMES[function]
    elif node.op == "call_method":
        if node.target not in _METHODS:
            raise ValueError(f"method {node.target!r} cannot be saved in a packed network")
        target = str(node.target)
    elif node.op == "get_attr":
        raise ValueError(f"attribute {node.target!r} cannot be saved in a packed network")
    else:
        target = str(node.target)
    arguments = [_argument_to_json(a) for a in args]
    keywords = {key: _argument_to_json(a) for key, a in node.kwargs.items()}
    return {"name": node.name, "op": node.op, "target": target, "args": arguments, "kwargs": keywords}


def _argument_to_json(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_argument_to_json(v) for v in value]
    if isinstance(value, slice):
        return {"slice": [_argument_to_json(v) for v in (value.start, value.stop, value.step)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"argument {value!r} cannot be saved in a packed network")


def _graph_from_json(nodes: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def argument(value: Any) -> Any:
        if isinstance(value, dict):
            return made[value["node"]] if "node" in value else slice(*map(argument, value["slice"]))
        return tuple(map(argument, value)) if isinstance(value, list) else value

    for spec in nodes:
        op, target = spec["op"], spec["target"]
        if op not in ("placeholder", "call_module", "call_function", "call_method", "output"):
            raise ValueError(f"unknown graph op {op!r}")
        if op == "call_method" and target not in _METHODS:
            raise ValueError(f"unknown method {target!r}")
        if op == "placeholder":
            _check_name(target)
        for key in (spec["name"], *spec["kwargs"]):
            _check_name(key)
        called = _FUNCTIONS[target] if op == "call_function" else target
        args = tuple(map(argument, spec["args"]))
        kwargs = {key: argument(value) for key, value in spec["kwargs"].items()}
        made[spec["name"]] = graph.create_node(op, called, args, kwargs, spec["name"])
    graph.lint()
    return graph
