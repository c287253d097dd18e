"""Networks to train, by name: ``list()``, ``create(name, num_classes, ...)``, ``example_inputs(name, ...)``."""

from stompp_kernels.models.bert import EncoderClassifier
from stompp_kernels.models.binary_vit import (
    BinaryAttention,
    BinaryViT,
    BinaryViTAttention,
    BinaryViTBlock,
    BinaryViTLinear,
    BinaryViTPatches,
    LayerScale,
)
from stompp_kernels.models.bireal import BiRealBlock
from stompp_kernels.models.bnext import BNext, BNextBlock, BNextUnit, Recoupling
from stompp_kernels.models.mlp import MLP
from stompp_kernels.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from stompp_kernels.models.reactnet import ReActBlock, ReActNet, ShiftedConv
from stompp_kernels.models.registry import Entry, create, entry, example_inputs, register
from stompp_kernels.models.registry import list_models as list
from stompp_kernels.models.residual import SmallResNet
from stompp_kernels.models.resnet import BasicBlock, Bottleneck, ResNet
from stompp_kernels.models.shifts import RPReLU, Shift

__all__ = [
    "MLP",
    "BNext",
    "BNextBlock",
    "BNextUnit",
    "BasicBlock",
    "BiRealBlock",
    "BinaryAttention",
    "BinaryViT",
    "BinaryViTAttention",
    "BinaryViTBlock",
    "BinaryViTLinear",
    "BinaryViTPatches",
    "Bottleneck",
    "EncoderClassifier",
    "Entry",
    "InvertedResidual",
    "LayerScale",
    "MobileNetV2",
    "RPReLU",
    "ReActBlock",
    "ReActNet",
    "Recoupling",
    "ResNet",
    "Shift",
    "ShiftedConv",
    "SmallResNet",
    "create",
    "entry",
    "example_inputs",
    "list",
    "register",
]
