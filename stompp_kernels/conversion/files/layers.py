"""A packed layer as JSON and tensors: what files of graphs and of models converted layer by layer have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.conversion.files.kinds import (
    BOOLEAN,
    NODE,
    NONE,
    Kind,
    check_call,
    choice,
    integer,
    list_of,
    signature,
)
from stompp_kernels.nn import BinaryWeightConv2d, BinaryWeightLayer, BinaryWeightLinear, PackedConv2d, PackedLinear
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns, BinaryWeight, PackedWeight, Threshold
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.ops.reference import words_for

_PACKED_CONVS = (PackedConv2d, BinaryWeightConv2d)
PACKED_NAMES: dict[str, Any] = {kind.__name__: kind for kind in (*_PACKED_CONVS, PackedLinear, BinaryWeightLinear)}
_SIZE = integer(1, 1 << 31)
_KINDS: dict[str, Kind] = {
    "matrix": list_of(_SIZE, 2, 2),
    "kernels": list_of(_SIZE, 4, 4),
    "groups": _SIZE,
    "names": list_of(Kind("a name", lambda v: type(v) is str and len(v) <= 4096), 0, 1 << 16),
    "note": Kind("a text", lambda v: type(v) is str and len(v) <= 4096),
    "rows": choice(0, 1, 2),
    "writes": choice("floats", "bits", "both"),
    "bool": BOOLEAN,
    "stride": list_of(integer(1, 1024), 2, 2),
    "padding": list_of(integer(0, 256), 2, 2),
    "sign": choice(0, 1, -1),
    "tensor": NODE,
    "none": NONE,
}
_LAYER = "groups:groups replaces:names threshold_rows:rows writes:writes fused:bool why_floats=note"
_CONV = f"shape:kernels {_LAYER} stride:stride padding:padding dilation:stride"
_SIGNATURES = {
    "PackedLinear": signature(f"shape:matrix {_LAYER}", _KINDS),
    "PackedConv2d": signature(f"{_CONV} padding_value:sign", _KINDS),
    "BinaryWeightLinear": signature(f"shape:matrix {_LAYER}", _KINDS),
    "BinaryWeightConv2d": signature(_CONV, _KINDS),
}
_CALL = signature("x_words:tensor residual=tensor|none", _KINDS)
_CALL_ON_FLOATS = signature("x:tensor", _KINDS)


def check_packed(name: str, spec: Any) -> None:
    """Raises ValueError unless a layer's settings are such as :func:`packed_to_json` writes."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if not isinstance(kind, str) or kind not in _SIGNATURES:
        raise ValueError(f"layer {name!r} must be of type {', '.join(_SIGNATURES)}, got {kind!r}")
    settings = {key: value for key, value in spec.items() if key != "type"}
    check_call(f"layer {name!r} of type {kind}", _SIGNATURES[kind], (), settings)


def check_packed_call(name: str, spec: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Raises ValueError unless the node's arguments are such as the layer's forward takes."""
    call = _CALL_ON_FLOATS if spec["type"].startswith("BinaryWeight") else _CALL
    check_call(f"layer {name!r}", call, node["args"], node["kwargs"])


def packed_to_json(module: PackedLayer) -> dict[str, Any]:
    """What :func:`packed_from_json` needs beside its tensors."""
    spec: dict[str, Any] = {
        "type": type(module).__name__,
        "shape": list(module.weight.shape),
        "groups": module.weight.groups,
        "replaces": list(module.replaces),
        "threshold_rows": module.thresholds.shape[0] if module.has_thresholds else 0,
        "writes": module.writes,
        "fused": module.fused,
    }
    if module.why_floats:
        spec["why_floats"] = module.why_floats
    if isinstance(module, _PACKED_CONVS):
        spec |= {key: list(getattr(module, key)) for key in ("stride", "padding", "dilation")}
    if isinstance(module, PackedConv2d):
        spec["padding_value"] = module.padding_value
    return spec


def check_tensors(
    name: str, expected: dict[str, Tensor], tensors: dict[str, Tensor], precisions: Sequence[torch.dtype] = ()
) -> None:
    """Raises ValueError unless tensors have a module's names, shapes and types, floats any of the precisions."""
    shapes = {key: list(t.shape) for key, t in expected.items()}
    if shapes != {key: list(t.shape) for key, t in tensors.items()}:
        raise ValueError(f"a {name} needs tensors of shapes {shapes}")
    for key, t in expected.items():
        dtype = tensors[key].dtype
        if dtype != t.dtype and not (t.is_floating_point() and dtype in precisions):
            raise ValueError(f"{key} of a {name} must be {t.dtype}, got {dtype}")


def packed_from_json(spec: Mapping[str, Any], tensors: dict[str, Tensor], copy: bool) -> PackedLayer:
    """The layer of a spec that was checked and these tensors, its weight packed for this machine.

    ``copy``: its constants are clones.
    """
    kind, shape = PACKED_NAMES[spec["type"]], spec["shape"]
    if "weight" not in tensors:
        raise ValueError(f"a {kind.__name__} needs a tensor 'weight'")
    float_inputs = issubclass(kind, BinaryWeightLayer)
    weight = (BinaryWeight if float_inputs else PackedWeight).from_words(tensors["weight"], shape, spec["groups"])
    constants = {key: t.clone() if copy else t for key, t in tensors.items() if key != "weight"}
    epilogue = _epilogue_from_json(spec, weight.shape[0], constants)
    options: dict[str, Any] = {"replaces": tuple(spec["replaces"])}
    if issubclass(kind, _PACKED_CONVS):
        options |= {key: tuple(spec[key]) for key in ("stride", "padding", "dilation")}
    if kind is PackedConv2d:
        options["padding_value"] = spec["padding_value"]
    if not float_inputs:
        layer = kind(weight, epilogue, **options)
        layer.why_floats = spec.get("why_floats", "")
        return layer
    if not isinstance(epilogue, Affine) or epilogue.fused or epilogue.rprelu is not None:
        raise ValueError(f"a {kind.__name__} has a scale and a bias only")
    return kind(weight, epilogue.scale, epilogue.bias, **options)


def _epilogue_from_json(
    spec: Mapping[str, Any], N: int, constants: dict[str, Tensor]
) -> Affine | AffineSigns | Threshold:
    rows, writes, fused = spec["threshold_rows"], spec["writes"], spec["fused"]
    check_choice("writes", writes, ("bits",) if rows else ("floats", "bits", "both"))
    if rows and fused:
        raise ValueError(f"a layer with {rows} threshold rows cannot have fused {fused!r}")
    names = ["scale", "bias", *(["residual_scale", "residual_bias"] if "residual_scale" in constants else [])]
    with torch.device("meta"):
        expected = {name: torch.empty(N, dtype=torch.float32) for name in names}
        matrices = {"rprelu": 3, "limits": 2} if writes != "floats" else {"rprelu": 3}
        expected |= {
            key: torch.empty(rows_of, N, dtype=torch.float32) for key, rows_of in matrices.items() if key in constants
        }
        if rows:
            flip_words = torch.empty(words_for(N), dtype=torch.int32)
            expected = {"thresholds": torch.empty(rows, N, dtype=torch.int32), "flip_words": flip_words}
    check_tensors(spec["type"], expected, constants)
    if rows:
        return Threshold(**constants)
    if writes == "floats":
        return Affine(**constants, fused=fused)
    return AffineSigns(**constants, fused=fused, floats=writes == "both")
