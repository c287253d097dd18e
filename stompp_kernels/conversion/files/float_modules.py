"""The closed list of float modules that a packed file may hold, each with the arguments that make it again.

Modules are made on the device "meta", and their own tensors are then those of the file: no argument takes memory before
it was compared with what the file holds. Arguments that ask a call for memory have bounds of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion.files.calls import INTERPOLATIONS, PADDING_MODES, SCALED_DOT_PRODUCT_ATTENTION
from stompp_kernels.conversion.files.kinds import (
    BOOLEAN,
    NODE,
    NONE,
    NUMBER,
    Kind,
    Parameter,
    check_call,
    choice,
    integer,
    list_of,
    pads,
    signature,
    triple,
    with_product,
)
from stompp_kernels.conversion.files.layers import check_tensors
from stompp_kernels.nn import (
    BFloat16Attention,
    BFloat16Linear,
    BinaryLayer,
    BinaryMatmul,
    FloatConv2d,
    MaxPoolSigns,
    PackBatchNorm,
    PackedMatmul,
    PackSigns,
    PrepackedConv2d,
    ProgressiveActivation,
    SignActivation,
    SignKeepingGELU,
    SignKeepingMish,
    SignKeepingSiLU,
    UnpackSigns,
)
from stompp_kernels.ops.checks import FLOATS

_FACTOR = Kind("a number in (0, 64]", lambda v: type(v) in (int, float) and 0 < v <= 64)
_KINDS: dict[str, Kind] = {
    "bool": BOOLEAN,
    "none": NONE,
    "number": NUMBER,
    "rate": Kind("a number in [0, 1]", lambda v: type(v) in (int, float) and 0 <= v <= 1),
    "count": integer(1, 1 << 31),
    "counts": integer(1, 1 << 31) | list_of(integer(1, 1 << 31), 1, 8),
    "few": integer(1, 64),
    "int": integer(-(1 << 31), 1 << 31),
    "dim": integer(-16, 16),
    "kernel": triple(1, 1024),
    "patch": integer(1, 16) | with_product(list_of(integer(1, 256), 1, 3), 256),
    "patch_padding": triple(0, 16),
    "stride": triple(1, 1024),
    "padding": triple(0, 256),
    "same": choice("same", "valid"),
    "padding_mode": choice(*PADDING_MODES),
    "pads": pads(integer(-4096, 4096), 1 << 19),
    "out": with_product(integer(1, 1024) | NONE | list_of(integer(1, 1024) | NONE, 1, 3), 1 << 20),
    "interpolated": with_product(integer(1, 8192) | list_of(integer(1, 8192), 1, 3), 1 << 22),
    "factors": with_product(_FACTOR | list_of(_FACTOR, 1, 3), 4096),
    "interpolation": choice(*INTERPOLATIONS),
    "gelu": choice("none", "tanh"),
    "rnn": choice("tanh", "relu"),
    "sizes": list_of(integer(-1, 1 << 31), 1, 8),
    "reads": choice("floats", "bits"),
    "writes": choice("floats", "affine", "bits"),
}

_CONV = (
    "in_channels:count out_channels:count kernel_size:kernel stride:stride padding:padding|same dilation:stride "
    "groups:count bias:bool padding_mode:padding_mode"
)
_CONV_TRANSPOSED = (
    "in_channels:count out_channels:count kernel_size:kernel stride:stride padding:padding output_padding:padding "
    "groups:count bias:bool dilation:stride padding_mode:padding_mode"
)
_NORM = "num_features:count eps:number momentum:number|none affine:bool track_running_stats:bool"
_MAX_POOL = "kernel_size:kernel stride:stride|none padding:padding dilation:stride return_indices:bool ceil_mode:bool"
_AVG_POOL = "kernel_size:kernel stride:stride|none padding:padding ceil_mode:bool count_include_pad:bool"
_RNN = "input_size:count hidden_size:count num_layers:few bias:bool batch_first:bool dropout:rate bidirectional:bool"

_ARGUMENTS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, PrepackedConv2d), _CONV),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _CONV_TRANSPOSED),
    **dict.fromkeys((nn.Linear, BFloat16Linear), "in_features:count out_features:count bias:bool"),
    BFloat16Attention: "",
    nn.Bilinear: "in1_features:count in2_features:count out_features:count bias:bool",
    nn.Embedding: "num_embeddings:count embedding_dim:count padding_idx:int|none",
    nn.MultiheadAttention: "embed_dim:count num_heads:count dropout:rate bias:bool add_bias_kv:bool "
    "add_zero_attn:bool kdim:count vdim:count batch_first:bool",
    nn.RNN: f"{_RNN} nonlinearity:rnn",
    nn.GRU: _RNN,
    nn.LSTM: f"{_RNN} proj_size:int",
    **dict.fromkeys(
        (
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ),
        _NORM,
    ),
    nn.LayerNorm: "normalized_shape:counts eps:number elementwise_affine:bool bias:bool",
    nn.RMSNorm: "normalized_shape:counts eps:number|none elementwise_affine:bool",
    nn.GroupNorm: "num_groups:count num_channels:count eps:number affine:bool",
    nn.LocalResponseNorm: "size:few alpha:number beta:number k:number",
    # What is in place changes what others read: files of older versions, which do not say, hold none that matters.
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.SELU), "inplace=bool"),
    **dict.fromkeys((nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Identity, nn.Softmax2d), ""),
    nn.LeakyReLU: "negative_slope:number inplace=bool",
    nn.RReLU: "lower:number upper:number inplace=bool",
    nn.PReLU: "num_parameters:count",
    nn.ELU: "alpha:number inplace=bool",
    nn.CELU: "alpha:number inplace=bool",
    nn.GELU: "approximate:gelu",
    SignKeepingGELU: "approximate:gelu",
    **dict.fromkeys((SignKeepingMish, SignKeepingSiLU), "inplace=bool"),
    nn.GLU: "dim:dim",
    nn.Hardtanh: "min_val:number max_val:number inplace=bool",
    nn.Threshold: "threshold:number value:number inplace=bool",
    nn.Softplus: "beta:number threshold:number",
    nn.Hardshrink: "lambd:number",
    nn.Softshrink: "lambd:number",
    **dict.fromkeys((nn.Softmax, nn.Softmin, nn.LogSoftmax), "dim:dim|none"),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), "p:rate"),
    nn.FeatureAlphaDropout: "p:rate",
    nn.Flatten: "start_dim:dim end_dim:dim",
    nn.Unflatten: "dim:dim unflattened_size:sizes",
    **dict.fromkeys(
        (
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        "padding:pads",
    ),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), "padding:pads value:number"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX_POOL),
    nn.AvgPool1d: _AVG_POOL,
    nn.AvgPool2d: f"{_AVG_POOL} divisor_override:int|none",
    nn.AvgPool3d: f"{_AVG_POOL} divisor_override:int|none",
    **dict.fromkeys(
        (nn.LPPool1d, nn.LPPool2d), "norm_type:number kernel_size:kernel stride:stride|none ceil_mode:bool"
    ),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "output_size:out"),
    **dict.fromkeys(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "output_size:out return_indices:bool"
    ),
    nn.Upsample: "size:interpolated|none scale_factor:factors|none mode:interpolation align_corners:bool|none "
    "recompute_scale_factor:bool|none",
    nn.UpsamplingNearest2d: "size:interpolated|none scale_factor:factors|none",
    nn.UpsamplingBilinear2d: "size:interpolated|none scale_factor:factors|none",
    nn.PixelShuffle: "upscale_factor:few",
    nn.PixelUnshuffle: "downscale_factor:few",
    nn.ChannelShuffle: "groups:count",
    nn.Unfold: "kernel_size:patch dilation:stride padding:patch_padding stride:stride",
    nn.Fold: "output_size:interpolated kernel_size:kernel dilation:stride padding:padding stride:stride",
    nn.CosineSimilarity: "dim:dim eps:number",
    FloatConv2d: "in_channels:count out_channels:count kernel_size:kernel stride:stride padding:padding "
    "dilation:stride reads:reads writes:writes fused:bool bfloat16=bool",
    MaxPoolSigns: "kernel_size:kernel stride:stride|none padding:padding dilation:stride ceil_mode:bool",
    PackBatchNorm: "channels:count images:bool",
    PackSigns: "images:bool",
    PackedMatmul: "zero_one:bool",
    SignActivation: "",
    UnpackSigns: "channels:count images:bool stride=stride",
}
# Where an attribute does not have the value, or the name, of the argument that made it.
_GETTERS: dict[str, Callable[[Any], Any]] = {
    "bias": lambda module: _bias_of(module) is not None,
    "add_bias_kv": lambda module: module.bias_k is not None,
}
_TENSOR = {"tensor": NODE, "tensors": NODE | list_of(NODE, 1, 2), **_KINDS}
_ATTENTION = (
    "query:tensor key:tensor value:tensor key_padding_mask=tensor|none need_weights=bool attn_mask=tensor|none "
    "average_attn_weights=bool is_causal=bool"
)
# Arguments of a call, where they are not one tensor.
_CALLS: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: _ATTENTION,
    BFloat16Attention: SCALED_DOT_PRODUCT_ATTENTION,
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), "input:tensor hx=tensors|none"),
    nn.Bilinear: "input1:tensor input2:tensor",
    nn.CosineSimilarity: "x1:tensor x2:tensor",
    PackedMatmul: "a:tensor b:tensor",
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        "input:tensor output_size=interpolated|tensor|none",
    ),
}
_CALL_SIGNATURES = {kind.__name__: signature(_CALLS.get(kind, "input:tensor"), _TENSOR) for kind in _ARGUMENTS}
_SIGNATURES: dict[str, tuple[Parameter, ...]] = {
    kind.__name__: signature(text, _KINDS) for kind, text in _ARGUMENTS.items()
}
_KINDS_BY_NAME = {kind.__name__: kind for kind in _ARGUMENTS}
_OF_ONE_PRECISION = (PackBatchNorm, FloatConv2d)


def float_module_to_json(name: str, module: nn.Module) -> dict[str, Any]:
    """Type and arguments of a module that is listed.

    Raises:
        ValueError: it is not, or it does more than its type says.
    """
    kind = type(module)
    if isinstance(module, (BinaryLayer, BinaryMatmul, ProgressiveActivation)):
        raise ValueError(
            f"module {name!r} of type {kind.__name__} is not committed, and a packed file holds no such: train until "
            "progression.fully_committed, and convert again"
        )
    if kind not in _ARGUMENTS:
        raise ValueError(
            f"module {name!r} of type {kind.__name__} cannot be saved in a packed network; write its forward with "
            "modules and functions that the format lists (docs/file-format.md), or use sk.export_packed"
        )
    hooks = module._forward_hooks, module._forward_pre_hooks, *([] if kind is not nn.Embedding else [module.max_norm])
    if any(hooks):
        raise ValueError(f"module {name!r} of type {kind.__name__} has hooks or a max_norm, which no file can hold")
    arguments = {p.name: _argument_of(module, p.name) for p in _SIGNATURES[kind.__name__]}
    return {"type": kind.__name__, "arguments": arguments}


def check_float_module(name: str, spec: Mapping[str, Any]) -> None:
    """Raises ValueError unless type and arguments are those of a module that is listed."""
    if set(spec) != {"type", "arguments"} or not isinstance(spec["arguments"], dict):
        raise ValueError(f"module {name!r} must have a type and arguments, got {sorted(spec)}")
    kind = spec["type"]
    if not isinstance(kind, str) or kind not in _SIGNATURES:
        raise ValueError(f"unknown module type {kind!r}")
    check_call(f"module {name!r} of type {kind}", _SIGNATURES[kind], (), spec["arguments"])


def check_float_module_call(name: str, spec: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Raises ValueError unless the node's arguments are such as the module's forward takes."""
    check_call(f"module {name!r}", _CALL_SIGNATURES[spec["type"]], node["args"], node["kwargs"])


def float_module_from_json(
    spec: Mapping[str, Any], arguments: Mapping[str, Any], tensors: dict[str, Tensor], copy: bool
) -> nn.Module:
    """The module of a spec that was checked, with these tensors. ``copy``: its tensors are clones."""
    kind = _KINDS_BY_NAME[spec["type"]]
    # No memory is taken for a shape that the file gives: its own tensors take the place of these.
    with torch.device("meta"):
        module = kind(**arguments)
    check_tensors(spec["type"], module.state_dict(), tensors, () if kind in _OF_ONE_PRECISION else FLOATS)
    own = {key: t.clone() for key, t in tensors.items()} if copy else tensors
    module.load_state_dict(own, assign=True)
    return module


def _argument_of(module: nn.Module, name: str) -> Any:
    return _GETTERS[name](module) if name in _GETTERS else getattr(module, name)


def _bias_of(module: nn.Module) -> Any:
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias
    return module.bias or None if isinstance(module, nn.RNNBase) else module.bias
