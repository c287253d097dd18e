"""The ops as functions; the folder reference holds the oracle of each.

The examples in the docstrings follow ``import torch`` and ``from stompp_kernels.ops import *``.
"""

from stompp_kernels.ops import schemas  # noqa: F401  (defines torch.ops.stompp, which the rest of the folder uses)
from stompp_kernels.ops.batched_bgemm import batched_bgemm
from stompp_kernels.ops.bconv2d import bconv2d
from stompp_kernels.ops.bgemm import bgemm
from stompp_kernels.ops.binary_weight import (
    BinaryWeight,
    conv2d_binary_weight,
    linear_binary_weight,
    pack_binary_weight,
)
from stompp_kernels.ops.conv2d_float import FloatWeight, Limits, conv2d_float, pack_float_weight
from stompp_kernels.ops.epilogue import Affine, AffineSigns, Threshold
from stompp_kernels.ops.gradients import signs_as_constants
from stompp_kernels.ops.pack import PackedWeight, pack_conv_weight, pack_outside, pack_signs, pack_weight, unpack_signs
from stompp_kernels.ops.pool import max_pool2d_signs
from stompp_kernels.ops.progressive import progressive, progressive_drawn
from stompp_kernels.ops.refresh_mask import count_frozen, draw_state, full_mask, refresh_mask_

__all__ = [
    "Affine",
    "AffineSigns",
    "BinaryWeight",
    "FloatWeight",
    "Limits",
    "PackedWeight",
    "Threshold",
    "batched_bgemm",
    "bconv2d",
    "bgemm",
    "conv2d_binary_weight",
    "conv2d_float",
    "count_frozen",
    "draw_state",
    "full_mask",
    "linear_binary_weight",
    "max_pool2d_signs",
    "pack_binary_weight",
    "pack_conv_weight",
    "pack_float_weight",
    "pack_outside",
    "pack_signs",
    "pack_weight",
    "progressive",
    "progressive_drawn",
    "refresh_mask_",
    "signs_as_constants",
    "unpack_signs",
]
