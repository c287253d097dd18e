"""The float layers of a packed network that multiply bfloat16: ``float_layers="fast"``."""

from __future__ import annotations

import inspect
import operator
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from stompp_kernels import native
from stompp_kernels.conversion.packing.nodes import fresh_name, has_hooks
from stompp_kernels.nn import BFloat16Attention, BFloat16Linear, BinaryLayer
from stompp_kernels.nn.bfloat16 import bfloat16_layers
from stompp_kernels.nn.bfloat16_attention import CHILD, attends_in_transformers, make_attention_fast

_NAMED = 5  # layers in a warning
_PRODUCTS = (
    *(nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_PRODUCT_FUNCTIONS = (
    *(torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, operator.matmul, "matmul", "bmm", "baddbmm"),
    *(F.linear, F.bilinear, F.multi_head_attention_forward, F.scaled_dot_product_attention),
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)
_ATTENTION = inspect.signature(BFloat16Attention.forward)
# Where a module's own forward calls one of these, it multiplies activations.
_NAMES_OF_PRODUCTS = {"scaled_dot_product_attention", "ALL_ATTENTION_FUNCTIONS", "matmul", "bmm", "baddbmm", "einsum"}


def round_linear_layers(network: nn.Module) -> None:
    """Puts a :class:`BFloat16Linear` in the place of each nn.Linear, of which it shares the parameters."""
    twins: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and not has_hooks(module):
                twins.setdefault(module, BFloat16Linear.of(module))
                setattr(parent, name, twins[module])


def round_attention(network: nn.Module) -> None:
    """Lets calls of torch's attention in a traced graph, and in modules of transformers, multiply bfloat16."""
    if isinstance(network, fx.GraphModule):
        for node in list(network.graph.nodes):
            if node.target is F.scaled_dot_product_attention:
                _round_attention_of(network, node)
        return
    for module in list(network.modules()):
        if attends_in_transformers(module) and CHILD not in module._modules:
            make_attention_fast(module)


def _round_attention_of(network: fx.GraphModule, node: fx.Node) -> None:
    name = fresh_name(network, node.name)
    network.add_submodule(name, BFloat16Attention())
    given = _ATTENTION.bind(None, *node.args, **node.kwargs).arguments
    args = [given.pop(key) for key in ("self", "query", "key", "value")]
    node.op, node.target, node.args, node.kwargs = "call_module", name, tuple(args[1:]), given


def warn_of_exact_layers(packed: nn.Module) -> None:
    """Warns of float layers that stay in float32 although they were to be fast."""
    fast = bfloat16_layers(packed)
    if fast and not native.multiplies_bfloat16():
        warnings.warn(
            "float_layers='fast' changes nothing here: the implementation "
            f"{native.active_implementation()!r} does not multiply bfloat16, so all float layers run in float32",
            stacklevel=3,
        )
        return
    exact = [
        f"{name} ({type(module).__name__})"
        for name, module in packed.named_modules()
        if name not in fast and not isinstance(module, BinaryLayer) and _multiplies(packed, module)
    ]
    if isinstance(packed, fx.GraphModule):
        functions = [node for node in packed.graph.nodes if node.target in _PRODUCT_FUNCTIONS]
        exact += [f"{node.name} ({getattr(node.target, '__name__', node.target)})" for node in functions]
    if exact:
        more = f" and {len(exact) - _NAMED} more" if len(exact) > _NAMED else ""
        warnings.warn(
            f"float_layers='fast' leaves these layers in float32, which it has no kernel for: "
            f"{', '.join(exact[:_NAMED])}{more}",
            stacklevel=3,
        )


def _multiplies(packed: nn.Module, module: nn.Module) -> bool:
    """Returns whether a module is a product of floats, or calls one in the forward of its own that the network runs."""
    if isinstance(module, _PRODUCTS):
        return True
    kind: Any = type(module)
    if isinstance(packed, fx.GraphModule) or CHILD in module._modules or kind.__module__.startswith("stompp_kernels."):
        return False
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and not _NAMES_OF_PRODUCTS.isdisjoint(code.co_names)
