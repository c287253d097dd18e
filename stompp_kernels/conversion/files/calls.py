"""The closed list of functions and methods that a packed file may call, each with its signature.

Numbers that ask for memory (padding, repeats, sizes to scale to or to make) have bounds, so that no argument of a file
asks for gigabytes. Functions of torch and methods of tensors that have one name share a line.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from stompp_kernels.conversion.files.aten import operators
from stompp_kernels.conversion.files.kinds import (
    BOOLEAN,
    DEVICES,
    DTYPE,
    ELLIPSIS,
    INDEX,
    MEMORY_FORMATS,
    NODE,
    NONE,
    NUMBER,
    PATH,
    SLICE,
    TEXT,
    WORD,
    Kind,
    Parameter,
    choice,
    integer,
    list_of,
    pads,
    signature,
    triple,
    with_product,
    wrapped,
)
from stompp_kernels.conversion.packing import checks
from stompp_kernels.nn import sign_keeping

_VALUE = (
    NODE | Kind("a number", lambda v: NUMBER.holds(v) and not (type(v) is int and abs(v) > 1 << 24)) | BOOLEAN
)  # integers beyond 2^24 would repeat a tuple of sizes that often
_DIM = integer(-16, 16)
_SIZE = integer(-1, 1 << 31) | NODE
_MADE = integer(-1, 1 << 20) | NODE
_EXPANDED = integer(-1, 1 << 16) | NODE
_LISTED = Kind('{"list": [...]}', lambda v: type(v) is dict and v.keys() == {"list"} and type(v["list"]) is list)
_POSITION = NODE | INDEX | SLICE | ELLIPSIS | NONE | BOOLEAN | WORD
_POSITIONS = _POSITION | Kind(
    '{"list": [...]} of positions',
    lambda v: _LISTED.holds(v) and len(v["list"]) <= 1 << 16 and all(map(INDEX.holds, v["list"])),
)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
SCALED_DOT_PRODUCT_ATTENTION = (
    "query:tensor key:tensor value:tensor attn_mask=tensor|none dropout_p=number is_causal=bool scale=number|none "
    "enable_gqa=bool"
)
INTERPOLATIONS = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")

_KINDS: dict[str, Kind] = {
    "tensor": NODE,
    "tensors": list_of(NODE, 1, 4096) | NODE,
    "value": _VALUE,
    "number": NUMBER | NODE,
    "exponent": integer(-16, 16) | Kind("a float", lambda v: type(v) is float),
    "exponents": integer(-16, 16) | NODE | Kind("a float", lambda v: type(v) is float),
    "int": integer(-(1 << 24), 1 << 24) | NODE,
    "count": integer(1, 1 << 24) | NODE,
    "bool": BOOLEAN,
    "none": NONE,
    "dim": _DIM,
    "dims": _DIM | list_of(_DIM, 0, 16),
    "size": _SIZE,
    "sizes": list_of(_SIZE, 0, 16) | _SIZE,
    "parts": integer(1, 1 << 24) | NODE | list_of(integer(0, 1 << 24) | NODE, 1, 4096),
    "repeats": with_product(list_of(integer(0, 1 << 14) | NODE, 1, 16), 1 << 14) | NODE | integer(0, 1 << 14),
    "broadcast": with_product(list_of(_EXPANDED, 0, 16), 1 << 22) | _EXPANDED,
    "made": with_product(list_of(_MADE, 0, 16), 1 << 22) | _MADE,
    "position": _POSITIONS | list_of(_POSITIONS, 0, 16),
    "kernel": triple(1, 1024),
    "patch": integer(1, 16) | with_product(list_of(integer(1, 256), 1, 3), 256),
    "patch_padding": triple(0, 16),
    "stride": triple(1, 1024),
    "strides": list_of(integer(1, 1024), 0, 3) | integer(1, 1024),
    "padding": triple(0, 256),
    "same": choice("same", "valid"),
    "pads": pads(integer(-4096, 4096) | NODE, 1 << 19) | NODE,
    "pad_mode": choice("constant", "reflect", "replicate", "circular"),
    "out": with_product(integer(1, 1024) | NODE | list_of(integer(1, 1024) | NONE | NODE, 1, 3), 1 << 20),
    "interpolated": with_product(integer(1, 8192) | NODE | list_of(integer(1, 8192) | NODE, 1, 3), 1 << 22),
    "factors": with_product(
        Kind("a number in (0, 64]", lambda v: type(v) in (int, float) and 0 < v <= 64)
        | list_of(Kind("a number in (0, 64]", lambda v: type(v) in (int, float) and 0 < v <= 64), 1, 3),
        4096,
    ),
    "interpolation": choice(*INTERPOLATIONS),
    "factor": integer(1, 64),
    "shape": list_of(integer(1, 1 << 24) | NODE, 1, 8) | NODE,
    "gelu": choice("none", "tanh"),
    "rounding": choice("floor", "trunc"),
    "norm_p": choice("fro", "nuc") | NUMBER,
    "reduce": choice("sum", "mean", "prod", "amax", "amin"),
    "sampling": choice("bilinear", "nearest", "bicubic"),
    "sampling_padding": choice("zeros", "border", "reflection"),
    "equation": Kind(
        "letters, commas, dots and ->",
        lambda v: type(v) is str and len(v) <= 64 and all(c.isascii() and (c.isalpha() or c in ",.-> ") for c in v),
    ),
    "side": choice("left", "right"),
    "indexing": choice("ij", "xy"),
    "dtype": DTYPE | NODE,
    "device": wrapped("device", DEVICES) | NODE,
    "memory_format": wrapped("memory_format", MEMORY_FORMATS),
    "attribute": choice("shape", "dtype", "device", "ndim", "T", "mT", "is_cuda", "requires_grad"),
    "text": TEXT | NODE,
    "name": PATH,
    "constant": NONE | BOOLEAN | NUMBER | WORD,
    "fixed": list_of(integer(0, 1 << 31) | NONE, 0, 16),
    "keys": integer(0, 4096) | list_of(WORD, 0, 4096),
}

_TENSOR = "input:tensor"
_REDUCED = "input:tensor dim=dims|none keepdim=bool dtype=dtype|none"
_ARG_REDUCED = "input:tensor dim=dim|none keepdim=bool"
_POOL = "input:tensor kernel_size:kernel stride=stride|none padding=padding"
_AVG_POOL = f"{_POOL} ceil_mode=bool count_include_pad=bool"
_MAX_POOL = f"{_POOL} dilation=stride ceil_mode=bool return_indices=bool"
_CONV = "input:tensor weight:tensor bias=tensor|none stride=stride"
_CONV_FORWARD = f"{_CONV} padding=padding|same dilation=stride groups=count"
_CONV_TRANSPOSED = f"{_CONV} padding=padding output_padding=padding groups=count dilation=stride"
_SOFTMAX = "input:tensor dim=dim|none dtype=dtype|none"
_MADE_LIKE = "dtype=dtype|none device=device|none requires_grad=bool memory_format=memory_format"

# Functions of torch that are methods of tensors too, with the same arguments.
_BOTH = {
    **dict.fromkeys(
        (
            *("abs", "acos", "asin", "atan", "ceil", "clone", "conj", "cos", "cosh", "erf", "erfc", "exp", "exp2"),
            *("expm1", "floor", "frac", "isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2", "logical_not"),
            *("neg", "negative", "numel", "positive", "ravel", "reciprocal", "relu", "rsqrt", "sigmoid", "sign", "sin"),
            *("sinh", "sqrt", "square", "t", "tan", "tanh", "trunc", "bitwise_not", "detach", "deg2rad", "sgn"),
        ),
        _TENSOR,
    ),
    **dict.fromkeys(("add", "sub", "subtract"), "input:value other:value alpha=number"),
    **dict.fromkeys(
        (
            *("mul", "multiply", "true_divide", "floor_divide", "remainder", "fmod", "maximum", "minimum", "eq", "ne"),
            *("lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or"),
            *("atan2", "fmax", "fmin", "greater", "less", "greater_equal", "less_equal", "not_equal", "copysign"),
        ),
        "input:value other:value",
    ),
    "div": "input:value other:value rounding_mode=rounding|none",
    "divide": "input:value other:value rounding_mode=rounding|none",
    "pow": "input:value exponent:exponents",
    **dict.fromkeys(("matmul", "inner"), "input:tensor other:tensor"),
    **dict.fromkeys(("bmm", "mm"), "input:tensor mat2:tensor"),
    "dot": "input:tensor tensor:tensor",
    "mv": "input:tensor vec:tensor",
    "outer": "input:tensor vec2:tensor",
    "addmm": "input:tensor mat1:tensor mat2:tensor beta=number alpha=number",
    **dict.fromkeys(("baddbmm", "addbmm"), "input:tensor batch1:tensor batch2:tensor beta=number alpha=number"),
    **dict.fromkeys(("addcmul", "addcdiv"), "input:tensor tensor1:tensor tensor2:tensor value=number"),
    "lerp": "input:tensor end:tensor weight:number",
    "where": "condition:tensor input:value other:value",
    **dict.fromkeys(("clamp", "clip"), "input:tensor min=number|none max=number|none"),
    "clamp_min": "input:tensor min:number",
    "clamp_max": "input:tensor max:number",
    **dict.fromkeys(("mean", "sum", "nansum", "nanmean"), _REDUCED),
    "prod": "input:tensor dim=dim keepdim=bool dtype=dtype|none",
    **dict.fromkeys(("amax", "amin"), "input:tensor dim=dims keepdim=bool"),
    **dict.fromkeys(("all", "any"), "input:tensor dim=dims|none keepdim=bool"),
    **dict.fromkeys(("argmax", "argmin"), _ARG_REDUCED),
    **dict.fromkeys(("max", "min"), "input:tensor dim=dim|tensor keepdim=bool other=tensor"),
    **dict.fromkeys(("median", "nanmedian", "mode"), "input:tensor dim=dim keepdim=bool"),
    **dict.fromkeys(("std", "var"), "input:tensor dim=dims|none|bool unbiased=bool keepdim=bool correction=number"),
    "logsumexp": "input:tensor dim:dims keepdim=bool",
    "norm": "input:tensor p=norm_p dim=dims|none keepdim=bool",
    **dict.fromkeys(("cumsum", "cumprod"), "input:tensor dim:dim dtype=dtype|none"),
    **dict.fromkeys(("softmax", "log_softmax"), "input:tensor dim:dim dtype=dtype|none"),
    "topk": "input:tensor k:int dim=dim largest=bool sorted=bool",
    "sort": "input:tensor dim=dim descending=bool",
    "argsort": "input:tensor dim=dim descending=bool",
    "flatten": "input:tensor start_dim=dim end_dim=dim",
    "unflatten": "input:tensor dim:dim sizes:sizes",
    "reshape": "input:tensor *shape:sizes",
    "permute": "input:tensor *dims:dims",
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), "input:tensor dim0:dim dim1:dim"),
    "movedim": "input:tensor source:dims destination:dims",
    "squeeze": "input:tensor dim=dims",
    "unsqueeze": "input:tensor dim:dim",
    "unbind": "input:tensor dim=dim",
    "chunk": "input:tensor chunks:count dim=dim",
    "split": "input:tensor split_size=parts dim=dim split_size_or_sections=parts",
    "tensor_split": "input:tensor indices_or_sections:parts dim=dim",
    "narrow": "input:tensor dim:dim start:int length:int",
    "select": "input:tensor dim:dim index:int",
    "index_select": "input:tensor dim:dim index:tensor",
    "gather": "input:tensor dim:dim index:tensor",
    "take_along_dim": "input:tensor indices:tensor dim=dim",
    "masked_fill": "input:tensor mask:tensor value:number",
    "flip": "input:tensor *dims:dims",
    "roll": "input:tensor shifts:sizes dims=dims",
    "rot90": "input:tensor k=int dims=dims",
    "tile": "input:tensor *dims:repeats",
    "repeat_interleave": "input:tensor repeats:repeats dim=dim|none",
    "broadcast_to": "input:tensor size:broadcast",
    "diagonal": "input:tensor offset=int dim1=dim dim2=dim",
    "tril": "input:tensor diagonal=int",
    "triu": "input:tensor diagonal=int",
    "nan_to_num": "input:tensor nan=number|none posinf=number|none neginf=number|none",
    "isclose": "input:tensor other:tensor rtol=number atol=number equal_nan=bool",
    "hardshrink": "input:tensor lambd=number",
    "prelu": "input:tensor weight:tensor",
}
_CALLS_OF_TORCH = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "tensors:tensors dim=dim"),
    **dict.fromkeys(("hstack", "vstack", "dstack"), "tensors:tensors"),
    "einsum": "equation:equation *operands:tensors",
    "meshgrid": "*tensors:tensors indexing=indexing",
    "var_mean": "input:tensor dim=dims|none unbiased=bool keepdim=bool correction=number",
    "std_mean": "input:tensor dim=dims|none unbiased=bool keepdim=bool correction=number",
    "celu": "input:tensor alpha=number",
    "selu": _TENSOR,
    "conv1d": _CONV_FORWARD,
    "conv2d": _CONV_FORWARD,
    "conv3d": _CONV_FORWARD,
    "batch_norm": "input:tensor weight:tensor|none bias:tensor|none running_mean:tensor running_var:tensor "
    "training:bool momentum:number eps:number cudnn_enabled:bool",
    "channel_shuffle": "input:tensor groups:count",
    "adaptive_avg_pool1d": "input:tensor output_size:out",
    **dict.fromkeys(("zeros", "ones"), f"*size:made {_MADE_LIKE}"),
    "full": f"size:made fill_value:value {_MADE_LIKE}",
    **dict.fromkeys(("zeros_like", "ones_like"), f"{_TENSOR} {_MADE_LIKE}"),
    "full_like": f"{_TENSOR} fill_value:value {_MADE_LIKE}",
    "arange": f"start:int end=int step=int {_MADE_LIKE}",
    "linspace": f"start:number end:number steps:count {_MADE_LIKE}",
    "_assert": "condition:value message:text",
    "relu_": _TENSOR,
    "layer_norm": "input:tensor normalized_shape:shape weight=tensor|none bias=tensor|none eps=number "
    "cudnn_enable=bool",
    "group_norm": "input:tensor num_groups:count weight=tensor|none bias=tensor|none eps=number cudnn_enabled=bool",
    "rms_norm": "input:tensor normalized_shape:shape weight=tensor|none eps=number|none",
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d"),
        f"{_POOL} dilation=stride ceil_mode=bool",
    ),
    "avg_pool1d": f"{_POOL} ceil_mode=bool count_include_pad=bool",
    "rsub": "input:tensor other:value alpha=number",
    "is_tensor": _TENSOR,
    "is_floating_point": _TENSOR,
    **dict.fromkeys(("sym_max", "sym_min"), "a:value b:value"),
    **dict.fromkeys(("sym_float", "sym_int", "sym_not"), "a:value"),
}
_METHODS_ONLY = {
    **dict.fromkeys(
        ("float", "double", "half", "bfloat16", "int", "long", "bool", "byte", "short", "contiguous"),
        f"{_TENSOR} memory_format=memory_format",
    ),
    **dict.fromkeys(("dim", "ndimension", "nelement", "is_contiguous", "cpu"), _TENSOR),
    "view": "input:tensor *shape:sizes|dtype",
    "size": "input:tensor dim=dim",
    "expand": "input:tensor *size:broadcast",
    "repeat": "input:tensor *repeats:repeats",
    "to": "input:tensor dtype=dtype|device|tensor other=dtype|bool non_blocking=bool copy=bool device=device "
    "memory_format=memory_format",
    "type": "input:tensor dtype:dtype",
    **dict.fromkeys(("type_as", "expand_as", "view_as", "reshape_as"), "input:tensor other:tensor"),
    **dict.fromkeys(("new_zeros", "new_ones"), f"input:tensor *size:made {_MADE_LIKE}"),
    "new_full": f"input:tensor size:made fill_value:value {_MADE_LIKE}",
    "masked_fill_": "input:tensor mask:tensor value:number",
    **dict.fromkeys(("zero_",), _TENSOR),
    "fill_": "input:tensor value:value",
    "copy_": "input:tensor src:tensor",
    "split_with_sizes": "input:tensor split_sizes:parts dim=dim",
    "unfold": "input:tensor dimension:dim size:int step:count",
    **dict.fromkeys(("add_", "sub_"), "input:tensor other:value alpha=number"),
    **dict.fromkeys(("mul_", "pow_"), "input:tensor other:value"),
    "div_": "input:tensor other:value rounding_mode=rounding|none",
    **dict.fromkeys(("clamp_", "clip_"), "input:tensor min=number|none max=number|none"),
    **dict.fromkeys(
        ("relu_", "sigmoid_", "tanh_", "exp_", "sqrt_", "rsqrt_", "abs_", "neg_", "floor_", "ceil_", "square_"), _TENSOR
    ),
    **dict.fromkeys(("unsqueeze_",), "input:tensor dim:dim"),
    **dict.fromkeys(("squeeze_",), "input:tensor dim=dim"),
    **dict.fromkeys(("transpose_",), "input:tensor dim0:dim dim1:dim"),
}
_CALLS_OF_FUNCTIONAL = {
    **dict.fromkeys(("relu", "relu6", "hardswish", "hardsigmoid", "silu", "mish", "selu"), "input:tensor inplace=bool"),
    **dict.fromkeys(("sigmoid", "tanh", "logsigmoid", "softsign", "tanhshrink"), _TENSOR),
    **dict.fromkeys(("elu", "celu"), "input:tensor alpha=number inplace=bool"),
    "leaky_relu": "input:tensor negative_slope=number inplace=bool",
    "rrelu": "input:tensor lower=number upper=number training=bool inplace=bool",
    "hardtanh": "input:tensor min_val=number max_val=number inplace=bool",
    "threshold": "input:tensor threshold:number value:number inplace=bool",
    "softplus": "input:tensor beta=number threshold=number",
    **dict.fromkeys(("hardshrink", "softshrink"), "input:tensor lambd=number"),
    "gelu": "input:tensor approximate=gelu",
    "glu": "input:tensor dim=dim",
    "prelu": "input:tensor weight:tensor",
    "softmax": "input:tensor dim=dim|none _stacklevel=int dtype=dtype|none",
    "softmin": "input:tensor dim=dim|none _stacklevel=int dtype=dtype|none",
    "log_softmax": "input:tensor dim=dim|none _stacklevel=int dtype=dtype|none",
    "normalize": "input:tensor p=number dim=dim eps=number out=none",
    "cosine_similarity": "x1:tensor x2:tensor dim=dim eps=number",
    "linear": "input:tensor weight:tensor bias=tensor|none",
    "bilinear": "input1:tensor input2:tensor weight:tensor bias=tensor|none",
    "embedding": "input:tensor weight:tensor padding_idx=int|none max_norm=none norm_type=number "
    "scale_grad_by_freq=bool sparse=bool",
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV_FORWARD),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _CONV_TRANSPOSED),
    "batch_norm": "input:tensor running_mean:tensor|none running_var:tensor|none weight=tensor|none bias=tensor|none "
    "training=bool momentum=number eps=number",
    "instance_norm": "input:tensor running_mean=tensor|none running_var=tensor|none weight=tensor|none "
    "bias=tensor|none use_input_stats=bool momentum=number eps=number",
    "layer_norm": "input:tensor normalized_shape:shape weight=tensor|none bias=tensor|none eps=number",
    "rms_norm": "input:tensor normalized_shape:shape weight=tensor|none eps=number|none",
    "group_norm": "input:tensor num_groups:count weight=tensor|none bias=tensor|none eps=number",
    "local_response_norm": "input:tensor size:factor alpha=number beta=number k=number",
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        "input:tensor p=number training=bool inplace=bool",
    ),
    "avg_pool1d": _AVG_POOL,
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), f"{_AVG_POOL} divisor_override=int|none"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _MAX_POOL),
    **dict.fromkeys(
        ("lp_pool1d", "lp_pool2d"), "input:tensor norm_type:number kernel_size:kernel stride=stride|none ceil_mode=bool"
    ),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), "input:tensor output_size:out"
    ),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        "input:tensor output_size:out return_indices=bool",
    ),
    "pad": "input:tensor pad:pads mode=pad_mode value=number|none",
    **dict.fromkeys(
        ("interpolate", "upsample"),
        "input:tensor size=interpolated|none scale_factor=factors|none mode=interpolation align_corners=bool|none "
        "recompute_scale_factor=bool|none antialias=bool",
    ),
    "grid_sample": "input:tensor grid:tensor mode=sampling padding_mode=sampling_padding align_corners=bool|none",
    "affine_grid": "theta:tensor size:made align_corners=bool|none",
    "pixel_shuffle": "input:tensor upscale_factor:factor",
    "pixel_unshuffle": "input:tensor downscale_factor:factor",
    "channel_shuffle": "input:tensor groups:count",
    "unfold": "input:tensor kernel_size:patch dilation=stride padding=patch_padding stride=stride",
    "fold": "input:tensor output_size:interpolated kernel_size:kernel dilation=stride padding=padding stride=stride",
    "one_hot": "tensor:tensor num_classes=factor",
    "scaled_dot_product_attention": SCALED_DOT_PRODUCT_ATTENTION,
}
_OPERATORS = {
    **dict.fromkeys(
        (
            *("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "and_", "or_", "xor"),
            *("eq", "ne", "lt", "le", "gt", "ge"),
            *("iadd", "isub", "imul", "itruediv", "ifloordiv"),
        ),
        "a:value|sizes b:value|sizes",
    ),
    "pow": "a:value b:exponent",
    **dict.fromkeys(("neg", "pos", "invert", "not_", "abs"), "a:tensor"),
    "getitem": "a:tensor b:position",
}
_OWN = {"keep_negative": "y:tensor negative:tensor"}  # see nn/sign_keeping.py
_CHECKS = {  # of arguments, see checks.py
    "require_constant": "value:tensor name:name constant:constant",
    **dict.fromkeys(("require_given", "require_left_out"), "value:tensor name:name"),
    "require_items": "value:tensor name:name keys:keys",
    "require_sizes": "value:tensor name:name sizes:fixed",
}


def _listed() -> tuple[dict[str, Callable[..., Any]], dict[str, tuple[Parameter, ...]]]:
    """Functions by their names in a file, and the signatures of these names."""
    functions: dict[str, Callable[..., Any]] = {"getattr": getattr}
    signatures = {"getattr": signature("input:tensor name:attribute", _KINDS)}
    for prefix, module, listed in (
        ("", operator, _OPERATORS),
        ("torch.", torch, {**_BOTH, **_CALLS_OF_TORCH}),
        ("F.", F, _CALLS_OF_FUNCTIONAL),
        ("", checks, _CHECKS),
        ("", sign_keeping, _OWN),
    ):
        for name, text in listed.items():
            # A torch that lacks a function reads all files but those that call it.
            if (function := getattr(module, name, None)) is not None:
                functions[prefix + name] = function
                signatures[prefix + name] = signature(text, _KINDS)
    found, own = operators(_KINDS)
    return {**functions, **found}, {**signatures, **own}


FUNCTIONS, FUNCTION_SIGNATURES = _listed()
FUNCTION_NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}
METHOD_SIGNATURES = {name: signature(text, _KINDS) for name, text in {**_BOTH, **_METHODS_ONLY}.items()}
# A method where the tensor comes first and the condition second.
METHOD_SIGNATURES["where"] = signature("input:tensor condition:tensor other:value", _KINDS)
# Positional arguments whose lists stay lists: x[[0, 1]] takes rows, x[0, 1] a value.
KEEPS_LISTS = ("getitem",)
