"""Layers for training (progressive) and for inference (packed)."""

from stompp_kernels.nn.activation import ProgressiveActivation
from stompp_kernels.nn.binary import BinaryConv2d, BinaryLayer, BinaryLinear
from stompp_kernels.nn.binary_weight import BinaryWeightConv2d, BinaryWeightLayer, BinaryWeightLinear
from stompp_kernels.nn.functional import float_simulation
from stompp_kernels.nn.masked import Stage, copy_masks
from stompp_kernels.nn.packed import PackBatchNorm, PackedConv2d, PackedLinear, PackSigns, UnpackSigns

__all__ = [
    "BinaryConv2d",
    "BinaryLayer",
    "BinaryLinear",
    "BinaryWeightConv2d",
    "BinaryWeightLayer",
    "BinaryWeightLinear",
    "PackBatchNorm",
    "PackSigns",
    "PackedConv2d",
    "PackedLinear",
    "ProgressiveActivation",
    "Stage",
    "UnpackSigns",
    "copy_masks",
    "float_simulation",
]
