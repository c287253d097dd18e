"""convert: the packed inference twin of a committed model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from stompp_kernels.conversion.pack_graph import PackedTracer, is_packable, pack_graph
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import BinaryLayer


def convert(model: nn.Module, verify: Any = None) -> fx.GraphModule:
    """The packed inference network of a model: what is committed runs on bits, the rest stays as it is.

    Where a chain layer -> BatchNorm -> activation, with or without a +-1 shortcut added before the activation, ends in
    a committed activation, it becomes one kernel that reads and writes bits, its arithmetic folded to integer
    thresholds that give the float network's signs exactly. A chain layer -> BatchNorm -> + float shortcut becomes one
    kernel that writes floats, the next layer's bits, or both. Max-pooling of signs runs on bits. The result equals the
    model in eval mode: signs that are decided on integers are identical, floats the same arithmetic up to its last
    rounding.

    Args:
        model: prepared, and committed as a whole or in part; left as it is. Its graph must be traceable by torch.fx.
        verify: inputs (a tensor, tuple or dict) on which model and result are run and compared layer by layer.

    Returns:
        A torch.fx.GraphModule in eval mode; ``sk.explain`` tells what became of each layer.

    Raises:
        ValueError: no layer is committed, a parameter is not float32, the model cannot be traced, or results differ on
            the inputs to verify; the message names the first layer that does.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}
    if not layers:
        raise ValueError("model has no binary layer to convert")
    if not any(is_packable(layer) for layer in layers.values()):
        reasons = ", ".join(f"{name} ({_open_reason(layer)})" for name, layer in layers.items())
        raise ValueError(f"model must have a layer whose weights and inputs are committed, got {reasons}")
    other = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    if other:
        raise ValueError(f"model must have float32 parameters (model.float()), got {', '.join(sorted(other))}")
    original, model = model, copy.deepcopy(model).eval()
    try:
        graph = PackedTracer().trace(model)
    except Exception as error:
        raise ValueError(f"model cannot be traced by torch.fx: {error}") from error
    packed = pack_graph(model, graph)
    if verify is not None:
        verify_packed(original, packed, verify)
    return packed


def _open_reason(layer: BinaryLayer) -> str:
    if not layer.committed:
        return f"weights {layer.stage.name.lower()}"
    return "float inputs" if layer.activation is None else f"inputs {layer.activation.stage.name.lower()}"
