"""save_packed / load_packed: a packed network in one safetensors file.

The tensors are the network's state dict, packed weights in the portable word order. The metadata hold the structure as
JSON: which module stands where and how the graph calls them, or, of a model that keeps its own forward, its class and
config (serialize_modules.py). Nothing in a file is executed or unpickled: modules come from a fixed list, functions
from another, and a SHA-256 over structure and tensors refuses a file that was cut short or altered.
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
from safetensors.torch import save
from torch import Tensor, fx, nn

from stompp_kernels.conversion.serialize_layers import PACKED_NAMES, check_tensors, packed_from_json, packed_to_json
from stompp_kernels.conversion.serialize_modules import is_packed_by_layer, modules_from_json, modules_to_json
from stompp_kernels.files import replacing
from stompp_kernels.nn import FloatConv2d, MaxPoolSigns, PackBatchNorm, PackSigns, PrepackedConv2d, UnpackSigns
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops.checks import FLOATS

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
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.PReLU: ("num_parameters",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Hardswish: (),
    nn.Hardsigmoid: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Hardtanh: ("min_val", "max_val"),
    nn.Softmax: ("dim",),
    nn.Identity: (),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.ZeroPad2d: ("padding",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    FloatConv2d: (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
        *("reads", "writes", "fused"),
    ),
    MaxPoolSigns: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    PackBatchNorm: ("channels", "images"),
    PackSigns: ("images",),
    UnpackSigns: ("channels", "images", "stride"),
}
_FLOAT_MODULES[PrepackedConv2d] = _FLOAT_MODULES[nn.Conv2d]
_FLOAT_MODULE_NAMES = {kind.__name__: kind for kind in _FLOAT_MODULES}


def _shape(x: Tensor) -> torch.Size:
    """What fx writes as getattr(x, "shape"): the one attribute that a file may ask for."""
    return x.shape


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "iadd": operator.iadd,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "getitem": operator.getitem,
    "shape": _shape,
    "torch.add": torch.add,
    "torch.flatten": torch.flatten,
    "torch.cat": torch.cat,
    "torch.mean": torch.mean,
    "torch.mul": torch.mul,
    "torch.relu": torch.relu,
    "torch.sigmoid": torch.sigmoid,
    "torch.tanh": torch.tanh,
    "F.relu": F.relu,
    "F.hardtanh": F.hardtanh,
    "F.gelu": F.gelu,
    "F.silu": F.silu,
    "F.softmax": F.softmax,
    "F.avg_pool2d": F.avg_pool2d,
    "F.max_pool2d": F.max_pool2d,
    "F.adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "F.pad": F.pad,
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
# Names end up in the Python source that torch.fx generates: nothing but an identifier or a number may pass.
_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_METHODS = (
    *("add", "add_", "mul", "mean", "relu", "sigmoid", "tanh", "softmax"),
    *("flatten", "permute", "transpose", "reshape", "view", "size", "contiguous", "squeeze", "unsqueeze"),
)


def save_packed(packed: nn.Module, path: str | os.PathLike[str]) -> int:
    """Writes a packed network, whole, to one file; an existing file is replaced only once the new one is complete.

    A network that was traced is saved whatever its class. Of one that was converted layer by layer the file holds the
    name of its class and its config: it must be a model of Hugging Face transformers or ``sk.models``' "bert", as class
    and config make it.

    Args:
        packed: made by ``sk.convert``.
        path: of the file, by custom ``*.safetensors``.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: ``packed`` is not such a network.
        ValueError: it holds a module or function that the format does not know, or is of another class and was
            converted layer by layer; the message names it.
    """
    if isinstance(packed, fx.GraphModule):
        structure, tensors = _graph_module_to_json(packed)
    elif is_packed_by_layer(packed):
        structure, tensors = modules_to_json(packed)
    else:
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")
    text = json.dumps(structure, sort_keys=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "structure": text, "sha256": _digest(text, tensors)}
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    with replacing(path) as file:
        return file.write(save(tensors, metadata))


def load_packed(path: str | os.PathLike[str], mmap: bool = False) -> nn.Module:
    """Reads a network that :func:`save_packed` wrote, and packs its weights for this machine.

    Args:
        mmap: leave float weights and constants in the file's pages, as ``torch.load(mmap=True)`` does: less memory, and
            shared by all processes that load the file. It must then not be written to while the network lives; to
            replace it by another, as :func:`save_packed` does, is safe.

    Returns:
        A torch.fx.GraphModule, or a model of the class that was converted layer by layer; in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it holds a model of transformers, which is missing.
        ValueError: it is no packed network, is of another version, was cut short or was altered.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {os.fspath(path)!r}")
    text, tensors = _read(path)
    try:
        structure = json.loads(text)
        build = modules_from_json if "model" in structure else _network_from_json
        packed = build(structure, tensors, copy=not mmap)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError) as error:
        raise ValueError(f"{os.fspath(path)!r} holds a network that this package cannot build: {error}") from error
    return packed.eval()


def _read(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """Structure and tensors of a file that is whole."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is no packed network: format must be {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{os.fspath(path)!r} has version {metadata.get('version')!r}, this package reads {VERSION}")
    text = metadata.get("structure", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"{os.fspath(path)!r} was altered: its checksum does not match its contents")
    return text, tensors


def _graph_module_to_json(packed: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    structure = {"modules": _modules_to_json(packed), "graph": [_node_to_json(node) for node in packed.graph.nodes]}
    return structure, {name: t.detach().cpu().contiguous() for name, t in packed.state_dict().items()}


def _network_from_json(structure: dict[str, Any], tensors: dict[str, Tensor], copy: bool) -> fx.GraphModule:
    root = nn.Module()
    unused = dict(tensors)
    for name, spec in structure["modules"].items():
        own = {key.removeprefix(f"{name}."): unused.pop(key) for key in tensors if key.startswith(f"{name}.")}
        _add_submodule(root, name, _module_from_json(spec, own, copy))
    if unused:
        raise ValueError(f"no module has the tensors {sorted(unused)}")
    return fx.GraphModule(root, _graph_from_json(structure["graph"]))


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _modules_to_json(packed: fx.GraphModule) -> dict[str, Any]:
    called = dict.fromkeys(str(node.target) for node in packed.graph.nodes if node.op == "call_module")
    return {name: _module_to_json(name, packed.get_submodule(name)) for name in called}


def _module_to_json(name: str, module: nn.Module) -> dict[str, Any]:
    kind = type(module)
    if isinstance(module, PackedLayer):
        return packed_to_json(module)
    if kind not in _FLOAT_MODULES:
        raise ValueError(f"module {name!r} of type {kind.__name__} cannot be saved in a packed network")
    arguments = {key: getattr(module, key) for key in _FLOAT_MODULES[kind]}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None
    return {"type": kind.__name__, "arguments": arguments}


def _module_from_json(spec: dict[str, Any], tensors: dict[str, Tensor], copy: bool) -> nn.Module:
    name = spec["type"]
    if name in PACKED_NAMES:
        return packed_from_json(spec, tensors, copy)
    if name not in _FLOAT_MODULE_NAMES:
        raise ValueError(f"unknown module type {name!r}")
    kind = _FLOAT_MODULE_NAMES[name]
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in spec["arguments"].items()}
    if set(arguments) != set(_FLOAT_MODULES[kind]):
        raise ValueError(f"module type {name!r} has arguments {sorted(arguments)}")
    # No memory is taken for a shape that the file gives: its own tensors take the place of these.
    with torch.device("meta"):
        module = kind(**arguments)
    check_tensors(name, module.state_dict(), tensors, () if kind in (PackBatchNorm, FloatConv2d) else FLOATS)
    own = {key: t.clone() for key, t in tensors.items()} if copy else tensors
    module.load_state_dict(own, assign=True)
    return module


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
        node = made[spec["name"]] = graph.create_node(op, called, args, kwargs, spec["name"])
        if op == "placeholder" and node.all_input_nodes:
            raise ValueError(f"the default of input {target!r} must be a constant")  # Python evaluates it on load
    graph.lint()
    return graph
