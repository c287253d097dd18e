"""The ops' schemas and where their kernels come from.

The compiled library defines ``torch.ops.stompp`` and its CPU kernels (csrc/torch). On NVIDIA GPUs the products' kernels
come from a second library (csrc/torch/cuda) and the elementwise ops' from Triton (ops/triton). What they do not cover
is served by ops/reference: other ops and devices, and, without the library, the definitions and the CPU too.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from stompp_kernels import cuda_library, native
from stompp_kernels.ops import reference
from stompp_kernels.ops.forms import FORMS, PRODUCTS

_FLOAT_CONV = "Tensor x, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation"

SCHEMAS = {
    "pack_signs": "(Tensor x) -> Tensor",
    "pack_outside": "(Tensor x, Tensor low, Tensor high) -> Tensor",
    "unpack_signs": "(Tensor words, int K, ScalarType dtype) -> Tensor",
    "pack_weight": "(Tensor w) -> Tensor",
    "pack_conv_weight": "(Tensor w, int groups) -> Tensor",
    "pack_weight_words": "(Tensor words, int[] shape, int groups) -> Tensor",
    "unpack_weight_words": "(Tensor weight, int[] shape, int groups) -> Tensor",
    **{product + form.suffix: form.schema(own) for product, own in PRODUCTS.items() for form in FORMS},
    "batched_bgemm": "(Tensor a_words, Tensor b_words, SymInt K) -> Tensor",
    "max_pool2d_signs": (
        "(Tensor x_words, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor"
    ),
    "pack_binary_weight_words": "(Tensor words, int[] shape, int groups) -> Tensor",
    "unpack_binary_weight_words": "(Tensor weight, int[] shape, int groups) -> Tensor",
    "linear_binary_weight": "(Tensor x, Tensor weight, int N, int K, Tensor scale, Tensor? bias) -> Tensor",
    "conv2d_binary_weight": (
        "(Tensor x, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, "
        "Tensor scale, Tensor? bias) -> Tensor"
    ),
    "conv2d_float": f"({_FLOAT_CONV}, Tensor? scale, Tensor? bias, bool fused) -> Tensor",
    "conv2d_float_signs": f"({_FLOAT_CONV}, Tensor low, Tensor high) -> Tensor",
    "progressive": "(Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> Tensor",
    "progressive_gated": "(Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> (Tensor, Tensor)",
    "progressive_drawn": "(Tensor u, Tensor draw, str surrogate) -> (Tensor, Tensor)",
    "progressive_gate_backward": "(Tensor grad, Tensor gate, SymInt[] strides, bool batch_shared) -> Tensor",
    "progressive_backward": "(Tensor grad, Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> Tensor",
    "refresh_mask_": "(Tensor(a!) mask_words, int n, float p, float r, int seed, int tensor_id, int step) -> ()",
}

# Imported only where it may run: that takes a second.
triton: Any = importlib.import_module("stompp_kernels.ops.triton") if native.wants_triton() else None

# A torch.library.Library unregisters what it registered when it is collected, so this one lives with the module.
_library = torch.library.Library("stompp", "FRAGMENT")


def _pack_weight(w: Tensor) -> Tensor:
    return torch.ops.stompp.pack_weight_words(torch.ops.stompp.pack_signs(w), w.shape, 1)


def _pack_conv_weight(w: Tensor, groups: int) -> Tensor:
    words = torch.ops.stompp.pack_signs(w.permute(0, 2, 3, 1))
    return torch.ops.stompp.pack_weight_words(words, w.shape, groups)


def _cuda_kernel(name: str) -> Any:
    """Returns what runs an op on an NVIDIA GPU; None where the library's kernel is registered already."""
    if native.cuda is not None and name in cuda_library.OPS:
        return None
    if native.cuda is not None and name in _WITH_TRITON:
        return _WITH_TRITON[name]
    return getattr(torch.ops.stompp_triton if triton is not None and name in triton.OPS else reference, name)


# These are not in the library for GPUs because a kernel of Triton's packs their signs.
_WITH_TRITON = {"pack_weight": _pack_weight, "pack_conv_weight": _pack_conv_weight}

for _name, _schema in SCHEMAS.items():
    if native.library is None:
        _library.define(_name + _schema)
        _library.impl(_name, getattr(reference, _name), "CPU")
    if _cuda_kernel(_name) is not None:
        _library.impl(_name, _cuda_kernel(_name), "CUDA")
    _library.impl(_name, getattr(reference, _name), "XPU")


_compiled = torch.ops.stompp


def kernels_for(x: Any) -> Any:
    """Returns the ops that run where x is: ``torch.ops.stompp_triton`` on an NVIDIA GPU, else ``torch.ops.stompp``.

    A compiled graph sees into the former; the latter's kernel for GPUs calls it.
    """
    if triton is None or not isinstance(x, torch.Tensor) or not x.is_cuda:
        return _compiled
    return torch.ops.stompp_triton
