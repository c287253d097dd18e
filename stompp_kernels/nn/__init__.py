"""Layers for training (progressive) and for inference (packed)."""

from stompp_kernels.nn.activation import ProgressiveActivation
from stompp_kernels.nn.average import AveragedModel
from stompp_kernels.nn.bfloat16 import BFloat16Linear
from stompp_kernels.nn.bfloat16_attention import BFloat16Attention
from stompp_kernels.nn.binary import BinaryConv2d, BinaryLayer, BinaryLinear
from stompp_kernels.nn.binary_matmul import BinaryMatmul, PackedMatmul
from stompp_kernels.nn.binary_weight import BinaryWeightConv2d, BinaryWeightLayer, BinaryWeightLinear
from stompp_kernels.nn.conv2d_float import FloatConv2d
from stompp_kernels.nn.functional import float_simulation
from stompp_kernels.nn.masked import Stage, copy_masks
from stompp_kernels.nn.packed import MaxPoolSigns, PackBatchNorm, PackedConv2d, PackedLinear, PackSigns, UnpackSigns
from stompp_kernels.nn.packed_on_floats import PackedOnFloats, SharedSigns, SignActivation
from stompp_kernels.nn.prepacked import PrepackedConv2d
from stompp_kernels.nn.reshaped_convs import BinaryConv1d, BinaryConvTranspose2d
from stompp_kernels.nn.sign_keeping import SignKeepingGELU, SignKeepingMish, SignKeepingSiLU

__all__ = [
    "AveragedModel",
    "BFloat16Attention",
    "BFloat16Linear",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConvTranspose2d",
    "BinaryLayer",
    "BinaryLinear",
    "BinaryMatmul",
    "BinaryWeightConv2d",
    "BinaryWeightLayer",
    "BinaryWeightLinear",
    "FloatConv2d",
    "MaxPoolSigns",
    "PackBatchNorm",
    "PackSigns",
    "PackedConv2d",
    "PackedLinear",
    "PackedMatmul",
    "PackedOnFloats",
    "PrepackedConv2d",
    "ProgressiveActivation",
    "SharedSigns",
    "SignActivation",
    "SignKeepingGELU",
    "SignKeepingMish",
    "SignKeepingSiLU",
    "Stage",
    "UnpackSigns",
    "copy_masks",
    "float_simulation",
]
