"""Structures of packed files that an older version of the format wrote, in the form of the current one."""

from __future__ import annotations

from typing import Any

from stompp_kernels.conversion.files.layers import PACKED_NAMES


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
