"""A model whose layers were packed one by one, as JSON and tensors.

Such a model keeps the forward of its class, which no file describes. The class is therefore one that is installed: a
model of Hugging Face transformers, or a class around one that is registered in ``nn/file_classes.py``. The file names
it, holds its config, and says which layers are packed. The model is built without memory (device "meta"), its layers
are swapped, and every parameter and buffer, non-persistent ones too, becomes a tensor of the file. Nothing is
downloaded, and no code comes from the file: configs that name other models, files or code are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion.files.config import (
    MADE_PER_TENSOR,
    FewTensors,
    check_settings,
    config_to_json,
    generation_from_json,
    generation_to_json,
)
from stompp_kernels.conversion.files.kinds import shown
from stompp_kernels.conversion.files.layers import check_packed, packed_from_json, packed_to_json
from stompp_kernels.conversion.files.little_time import in_little_time
from stompp_kernels.conversion.packing.modules import swap_layers
from stompp_kernels.conversion.packing.sign_chains import SignChain, sign_chains
from stompp_kernels.conversion.prepare.layers import BINARY_CONVS, transposed_linear, weight_of_twin
from stompp_kernels.conversion.prepare.split_activations import RELU_LIKE
from stompp_kernels.nn import (
    BFloat16Attention,
    BFloat16Linear,
    BinaryLayer,
    BinaryMatmul,
    BinaryWeightLayer,
    PackedMatmul,
    PackedOnFloats,
    ProgressiveActivation,
    SignActivation,
)
from stompp_kernels.nn.bfloat16_attention import CHILD, attends_in_transformers, make_attention_fast
from stompp_kernels.nn.file_classes import file_classes
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.nn.reshaped_convs import ReshapedLayer, reshape_of
from stompp_kernels.nn.sign_keeping import SignKeeping, loses_signs, sign_keeping_class
from stompp_kernels.ops.checks import FLOATS

_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_SECONDS, _SECONDS_PER_TENSOR = 3.0, 0.002  # of the processor; a BERT with 200 tensors takes 0.2 s
_MAY_BE_MISSING = ("keeps_signs", "bfloat16")  # lists of names


def is_packed_by_layer(model: nn.Module) -> bool:
    """Whether a model's layers were packed one by one."""
    return any(isinstance(module, (PackedOnFloats, BinaryWeightLayer, PackedMatmul)) for module in model.modules())


def modules_to_json(packed: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of a model that :func:`is_packed_by_layer`.

    Raises:
        ValueError: class and config do not give this model; the message names the first difference.
    """
    structure: dict[str, Any] = {"model": _model_to_json(packed), "layers": {}, "signs": []}
    structure.update({key: [] for key in _MAY_BE_MISSING})
    wrapped = {module.layer for module in packed.modules() if isinstance(module, (PackedOnFloats, ReshapedLayer))}
    for name, module in packed.named_modules():
        if isinstance(module, (BinaryLayer, BinaryMatmul, ProgressiveActivation)):
            raise ValueError(f"module {name!r} of type {type(module).__name__} cannot be saved in a packed network")
        layer = _packed_layer_in(module)
        if layer is not None and module not in wrapped:
            structure["layers"][name] = packed_to_json(layer)
        elif isinstance(module, SignActivation):
            structure["signs"].append(name)
        elif isinstance(module, SignKeeping):
            structure["keeps_signs"].append(name)
        elif isinstance(module, BFloat16Linear):
            structure["bfloat16"].append(name)
        elif isinstance(module, BFloat16Attention):
            structure["bfloat16"].append(name.removesuffix(f".{CHILD}"))  # the class has no module of this name
    for key in _MAY_BE_MISSING:
        if not structure[key]:
            del structure[key]  # readers of files without it need not know of it
    words = {f"{key}.weight": m.weight.words() for key, m in packed.named_modules() if isinstance(m, PackedLayer)}
    # Buffers may be views of each other, which a file cannot tell.
    rounded = {id(module.rounded) for module in packed.modules() if isinstance(module, BFloat16Linear)}
    buffers = {name: buffer.clone() for name, buffer in packed.named_buffers() if id(buffer) not in rounded}
    tensors = {**dict(packed.named_parameters()), **buffers, **words}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        rebuilt = modules_from_json(json.loads(json.dumps(structure)), tensors, copy=False)
    except ValueError as error:
        raise ValueError(f"class and config of {type(packed).__name__} do not give this model: {error}") from error
    _check_same_modules(packed, rebuilt)
    return structure, tensors


def _packed_layer_in(module: nn.Module) -> PackedLayer | None:
    """The packed layer of what stands in a layer's place."""
    for wrapper in (ReshapedLayer, PackedOnFloats):
        module = module.layer if isinstance(module, wrapper) else module
    return module if isinstance(module, PackedLayer) else None


def modules_from_json(structure: Mapping[str, Any], tensors: Mapping[str, Tensor], copy: bool) -> nn.Module:
    """The model, without gradients. ``copy``: its tensors are clones.

    Raises:
        ImportError: transformers is missing.
        ValueError: the structure describes no such model, or the tensors are not its own.
    """
    _check_structure(structure, tensors)
    model = _build_on_meta(structure["model"], tensors)
    unused = dict(tensors)
    layers, signs = structure["layers"], structure.get("signs", [])
    keeping, fast = (structure.get(key, []) for key in _MAY_BE_MISSING)
    modules = dict(model.named_modules())  # of these names no other can be: no property, no attribute of Python's
    if unknown := {*layers, *signs, *keeping, *fast} - modules.keys():
        raise ValueError(f"the model has no module {shown(sorted(unknown)[0])}")
    for name in keeping:
        _keep_signs(name, modules[name].eval())
    chains = _folded_chains(model, layers)
    bare = {chain.reader for chain in chains}
    twins = {
        name: _twin_from_json(modules[name], name, spec, name in bare, unused, copy) for name, spec in layers.items()
    }
    for name in signs:
        _check_is_relu_like(name, modules[name])
        model.set_submodule(name, SignActivation())
    swap_layers(model, twins, chains)
    for name in fast:
        _make_fast(model, name)
    _fill(model, twins.values(), unused, copy)
    for linear in model.modules():
        if isinstance(linear, BFloat16Linear):
            linear.round_weight()
    if "generation" in structure["model"]:
        model.generation_config = generation_from_json(structure["model"]["generation"])
    return model


def _check_structure(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless everything in a structure is what a file may hold."""
    if not {"model", "layers"} <= structure.keys() <= {"model", "layers", "signs", *_MAY_BE_MISSING}:
        allowed = ", ".join(("layers", "signs", *_MAY_BE_MISSING))
        raise ValueError(
            f"a structure must have a model, and of {allowed} what it needs, got {shown(sorted(structure))}"
        )
    spec, layers = structure["model"], structure["layers"]
    required = {"class", "arguments", "config"}
    if type(spec) is not dict or not required <= spec.keys() <= {*required, "generation"}:
        raise ValueError(f"a model must have a class, arguments and a config, got {shown(spec)}")
    if type(spec["class"]) is not str or _CLASS.fullmatch(spec["class"]) is None:
        raise ValueError(f"class must be a model of {_classes()}, got {shown(spec['class'])}")
    arguments, config, registered = spec["arguments"], spec["config"], file_classes().get(spec["class"])
    if type(arguments) is not dict or type(config) is not dict or type(config.get("model_type")) is not str:
        raise ValueError("arguments and config must be objects, the config with a model_type")
    if set(arguments) != set(registered.arguments if registered else ()):
        raise ValueError(f"class {spec['class']!r} has arguments {shown(sorted(arguments))}")
    check_settings({"arguments": arguments, "config": config}, spec.get("generation"), tensors)
    if type(layers) is not dict:
        raise ValueError("layers must be an object")
    for key in ("signs", *_MAY_BE_MISSING):
        names = structure.get(key, [])
        if type(names) is not list or not all(type(name) is str for name in names):
            raise ValueError(f"{key} must be a list of names, got {shown(names)}")
    for name, layer in layers.items():
        check_packed(name, layer)


def _model_to_json(model: nn.Module) -> dict[str, Any]:
    name = type(model).__name__
    registered = file_classes().get(name)
    if registered is not None and type(model) is registered.kind:
        arguments = {argument: read(model) for argument, read in registered.arguments.items()}
        return {"class": name, "arguments": arguments, "config": config_to_json(registered.config_of(model))}
    generation = getattr(model, "generation_config", None)
    own = {} if generation is None else {"generation": generation_to_json(generation)}
    try:
        known = type(model) is _transformers_class(name)
    except (ImportError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"packed must be traced by torch.fx (by_layer=False), or be a model of {_classes()}, to be saved, got "
            f"{name}, whose forward no file can hold"
        )
    return {"class": name, "arguments": {}, "config": config_to_json(model.config), **own}


def _classes() -> str:
    """What a class may be, in words for an error."""
    return " or ".join(["transformers", *map(repr, file_classes())])


def _check_same_modules(packed: nn.Module, rebuilt: nn.Module) -> None:
    """Checks that both have modules of the same types and settings, as far as modules print them."""
    found, expected = (
        {name: (type(m).__name__, m.extra_repr()) for name, m in model.named_modules()} for model in (rebuilt, packed)
    )
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"module {name!r} cannot be saved in a packed network: it is {expected.get(name)}, the model's class "
                f"and config give {found.get(name)}"
            )


def _transformers_class(name: str) -> Any:
    """A model class of transformers by its name."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'a packed model of transformers needs transformers: pip install "stompp_kernels[transformers]"'
        ) from error
    try:
        kind = getattr(transformers, name, None)
    except ImportError as error:
        raise ValueError(f"class {name!r} of transformers cannot be imported: {error}") from error
    base = transformers.PreTrainedModel
    # Each class of a model has the config class of its own.
    if not isinstance(kind, type) or not issubclass(kind, base) or getattr(kind, "config_class", None) is None:
        raise ValueError(f"class must be a model of {_classes()}, got {name!r}")
    return kind


def _build_on_meta(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    name, settings, arguments = spec["class"], spec["config"], spec["arguments"]
    registered = file_classes().get(name)
    # A registered class holds a model of transformers too: where transformers is missing, this says so.
    kind = _transformers_class("BertModel" if registered else name)

    def build() -> nn.Module:
        with FewTensors(MADE_PER_TENSOR * (len(tensors) + 100)), torch.device("meta"):
            if registered:
                return registered.kind(config=settings, **arguments)
            return _model_of_transformers(kind, settings)

    try:
        return in_little_time(_SECONDS + _SECONDS_PER_TENSOR * len(tensors), build)
    except Exception as error:  # of someone else's code, given settings that a file holds
        raise ValueError(f"class {name!r} cannot be built from its config: {error}") from error


def _model_of_transformers(kind: Any, settings: Mapping[str, Any]) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(**settings)
    if not isinstance(config, kind.config_class):
        raise ValueError(f"model_type must be {kind.config_class.model_type!r}, got {settings['model_type']!r}")
    return kind(config)


def _folded_chains(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> list[SignChain]:
    """The chains whose layer writes words, found again: the class that is installed may have another forward."""
    folded = {name: tuple(spec["replaces"]) for name, spec in layers.items() if spec["writes"] != "floats"}
    linear = [name for name, spec in layers.items() if spec["type"] == "PackedLinear"] if folded else []
    chains = {chain.layer: chain for chain in sign_chains(model.eval(), linear)}
    for name, replaces in folded.items():
        if name not in chains or replaces != (name, chains[name].function):
            raise ValueError(f"{name!r} writes {layers[name]['writes']}, which the model's forward does not allow")
    return [chains[name] for name in folded]


def _make_fast(model: nn.Module, name: str) -> None:
    module = model.get_submodule(name)
    if attends_in_transformers(module):
        make_attention_fast(module)
        return
    if type(module) is not nn.Linear:
        raise ValueError(f"{name!r} of type {type(module).__name__} cannot multiply bfloat16")
    model.set_submodule(name, BFloat16Linear.of(module))


def _check_is_relu_like(name: str, module: nn.Module) -> None:
    if not isinstance(module, RELU_LIKE):
        raise ValueError(f"{name!r} of type {type(module).__name__} has no signs in its place")


def _keep_signs(name: str, module: Any) -> None:
    if isinstance(module, SignKeeping):
        return  # listed twice
    if not loses_signs(module):
        raise ValueError(f"{name!r} of type {type(module).__name__} is no activation that rounds to zero")
    kind: Any = type(module)
    module.__class__ = sign_keeping_class(kind)


def _twin_from_json(
    layer: nn.Module, name: str, spec: Mapping[str, Any], bare: bool, unused: dict[str, Tensor], copy: bool
) -> PackedLayer:
    """The packed twin of a model's layer; its tensors are taken from ``unused``. ``bare``: it reads words."""
    kind, shape = spec["type"], list(spec["shape"])
    of = (nn.Linear, *transposed_linear()) if kind.endswith("Linear") else tuple(BINARY_CONVS)
    if type(layer) not in of or list(weight_of_twin(layer).shape) != shape:
        raise ValueError(f"{name!r} of type {type(layer).__name__} has no packed twin {kind} of shape {shape}")
    prefix = name if reshape_of(layer) is None else f"{name}.layer"
    prefix = prefix if bare or kind.startswith("BinaryWeight") else f"{prefix}.layer"
    constants = ("thresholds", "flip_words") if spec["threshold_rows"] else ("scale", "bias")
    own = {key: unused.pop(f"{prefix}.{key}") for key in ("weight", *constants)}
    return packed_from_json(spec, own, copy)


def _fill(model: nn.Module, twins: Iterable[PackedLayer], tensors: Mapping[str, Tensor], copy: bool) -> None:
    """Puts the tensors in the places of the model's own, which are on meta but for those of the packed twins."""
    packed = {id(buffer) for twin in twins for buffer in twin.buffers()}
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = {name: t for name, t in expected.items() if id(t) not in packed}
    _check_tensors(expected, tensors)
    new: dict[int, Tensor] = {}
    for name, old in expected.items():
        tensor = tensors[name].clone() if copy else tensors[name]
        new[id(old)] = nn.Parameter(tensor, requires_grad=False) if isinstance(old, nn.Parameter) else tensor
    # By identity, as a tied weight has one tensor and several places, some of them plain attributes.
    for name, module in model.named_modules():
        for places in (module._parameters, module._buffers, vars(module)):
            for key, old in places.items():
                if isinstance(old, Tensor):
                    places[key] = new.get(id(old), old)
        if any(isinstance(t, Tensor) and t.is_meta for t in _tensors_in(vars(module))):
            raise ValueError(f"module {name!r} of type {type(module).__name__} keeps a tensor that is no buffer")


def _tensors_in(attributes: Mapping[str, Any]) -> Iterable[Any]:
    """Tensors and what else lies in a module's attributes, its parameters and buffers included."""
    for value in attributes.values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    if missing := expected.keys() - tensors.keys():
        raise ValueError(f"the file lacks the model's tensors {sorted(missing)}")
    if unused := tensors.keys() - expected.keys():
        raise ValueError(f"no module has the tensors {sorted(unused)}")
    for name, t in expected.items():
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        if shape != list(t.shape):
            raise ValueError(f"{name} must have shape {list(t.shape)}, got {shape}")
        if dtype != t.dtype and not (t.is_floating_point() and dtype in FLOATS):
            raise ValueError(f"{name} must be {t.dtype}, got {dtype}")
