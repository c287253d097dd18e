"""convert: the packed inference twin of a committed model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import fx, nn

from stompp_kernels.conversion.pack_graph import PackedTracer, pack_graph
from stompp_kernels.conversion.pack_modules import pack_modules
from stompp_kernels.conversion.twins import has_binary_weight, is_packable
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import BinaryLayer


def convert(model: nn.Module, verify: Any = None, by_layer: bool | None = None) -> nn.Module:
    """The packed inference network of a model: what is committed runs on bits, the rest stays as it is.

    Where a chain layer -> BatchNorm -> activation, with or without a +-1 shortcut added before the activation, ends in
    a committed activation, it becomes one kernel that reads and writes bits, its arithmetic folded to integer
    thresholds that give the float network's signs exactly. A chain layer -> BatchNorm -> + float shortcut becomes one
    kernel that writes floats, the next layer's bits, or both. Max-pooling of signs runs on bits. The result equals the
    model in eval mode: signs that are decided on integers are identical, floats the same arithmetic up to its last
    rounding. Layers with binary weights and float inputs keep their weights as bits, and add in an order of their own.
    On the CPU convolutions that stay in float run by :func:`stompp_kernels.ops.conv2d_float`, with the BatchNorm and
    sign behind them, where that gives the bits of torch's convolution with the threads that are set now.

    Args:
        model: prepared, and committed as a whole or in part; left as it is.
        verify: inputs (a tensor, tuple or dict) on which model and result are run and compared layer by layer.
        by_layer: True: the model keeps its own forward, and each committed layer packs its own input and gives floats;
            nothing is folded across layers but an activation function between two of them, where torch.fx sees in the
            block that calls all three that no one else reads it, and its signs are one threshold of the layer's sums.
            False: torch.fx must trace it. None: False but for models of Hugging Face transformers.

    Returns:
        A torch.fx.GraphModule in eval mode, or with ``by_layer`` a module of the model's own type; ``sk.explain`` tells
        what became of each layer.

    Raises:
        ValueError: no layer is committed, a parameter is not float32, the model cannot be traced, or results differ on
            the inputs to verify; the message names the first layer that does.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}
    if not layers:
        raise ValueError("model has no binary layer to convert")
    if not any(is_packable(layer) or has_binary_weight(layer) for layer in layers.values()):
        stages = ", ".join(f"{name} ({layer.stage.name.lower()})" for name, layer in layers.items())
        raise ValueError(f"model must have a layer whose weights are committed, got {stages}")
    other = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    if other:
        raise ValueError(f"model must have float32 parameters (model.float()), got {', '.join(sorted(other))}")
    original, model = model, copy.deepcopy(model).eval()
    graph = _graph_of(model, by_layer)
    packed = pack_modules(model) if graph is None else pack_graph(model, graph)
    if verify is not None:
        verify_packed(original, packed, verify)
    return packed


def _graph_of(model: nn.Module, by_layer: bool | None) -> fx.Graph | None:
    """The traced model; None where its layers are to be converted one by one."""
    if by_layer:
        return None
    try:
        return PackedTracer().trace(model)
    except Exception as error:
        if by_layer is None and _is_transformer(model):
            return None
        raise ValueError(
            f"model cannot be traced by torch.fx; by_layer=True converts its layers one by one: {error}"
        ) from error


def _is_transformer(model: nn.Module) -> bool:
    """Whether a model of Hugging Face transformers is in it, none of which torch.fx can trace."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and any(isinstance(m, transformers.PreTrainedModel) for m in model.modules())
