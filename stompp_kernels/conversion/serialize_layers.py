"""A packed layer as JSON and tensors: what serialize.py and serialize_modules.py have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.nn import BinaryWeightConv2d, BinaryWeightLayer, BinaryWeightLinear, PackedConv2d, PackedLinear
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns, BinaryWeight, PackedWeight, Threshold
from stompp_kernels.ops.checks import check_choice, pair
from stompp_kernels.ops.reference import words_for

_PACKED_CONVS = (PackedConv2d, BinaryWeightConv2d)
PACKED_NAMES: dict[str, Any] = {kind.__name__: kind for kind in (*_PACKED_CONVS, PackedLinear, BinaryWeightLinear)}


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
    """That the tensors have a module's names, shapes and types; floats may have any of the precisions."""
    shapes = {key: list(t.shape) for key, t in expected.items()}
    if shapes != {key: list(t.shape) for key, t in tensors.items()}:
        raise ValueError(f"a {name} needs tensors of shapes {shapes}")
    for key, t in expected.items():
        dtype = tensors[key].dtype
        if dtype != t.dtype and not (t.is_floating_point() and dtype in precisions):
            raise ValueError(f"{key} of a {name} must be {t.dtype}, got {dtype}")


def packed_from_json(spec: dict[str, Any], tensors: dict[str, Tensor], copy: bool) -> PackedLayer:
    """The layer of these tensors, its weight packed for this machine. ``copy``: its constants are clones."""
    kind, shape = PACKED_NAMES[spec["type"]], spec["shape"]
    if len(shape) != (4 if issubclass(kind, _PACKED_CONVS) else 2):
        raise ValueError(f"a {kind.__name__} has no weight of shape {shape}")
    float_inputs = issubclass(kind, BinaryWeightLayer)
    weight = (BinaryWeight if float_inputs else PackedWeight).from_words(tensors["weight"], shape, spec["groups"])
    constants = {key: t.clone() if copy else t for key, t in tensors.items() if key != "weight"}
    epilogue = _epilogue_from_json(spec, weight.shape[0], constants)
    options: dict[str, Any] = {"replaces": tuple(map(str, spec["replaces"]))}
    if issubclass(kind, _PACKED_CONVS):
        options |= {key: pair(key, spec[key], int(key != "padding")) for key in ("stride", "padding", "dilation")}
    if kind is PackedConv2d:
        check_choice("padding_value", spec["padding_value"], (0, 1, -1))
        options["padding_value"] = spec["padding_value"]
    if not float_inputs:
        layer = kind(weight, epilogue, **options)
        layer.why_floats = str(spec.get("why_floats", ""))
        return layer
    if not isinstance(epilogue, Affine) or epilogue.fused:
        raise ValueError(f"a {kind.__name__} has a scale and a bias only")
    return kind(weight, epilogue.scale, epilogue.bias, **options)


def _epilogue_from_json(spec: dict[str, Any], N: int, constants: dict[str, Tensor]) -> Affine | AffineSigns | Threshold:
    rows, writes, fused = spec["threshold_rows"], spec["writes"], spec["fused"]
    check_choice("threshold_rows", rows, (0, 1, 2))
    check_choice("writes", writes, ("bits",) if rows else ("floats", "bits", "both"))
    if not isinstance(fused, bool) or (rows and fused):
        raise ValueError(f"a layer with {rows} threshold rows cannot have fused {fused!r}")
    with torch.device("meta"):
        expected = {"scale": torch.empty(N), "bias": torch.empty(N)}
        if rows:
            flip_words = torch.empty(words_for(N), dtype=torch.int32)
            expected = {"thresholds": torch.empty(rows, N, dtype=torch.int32), "flip_words": flip_words}
        elif "residual_scale" in constants:
            expected |= {"residual_scale": torch.empty(N), "residual_bias": torch.empty(N)}
    check_tensors(spec["type"], expected, constants)
    if rows:
        return Threshold(**constants)
    if writes == "floats":
        return Affine(**constants, fused=fused)
    return AffineSigns(**constants, fused=fused, floats=writes == "both")
