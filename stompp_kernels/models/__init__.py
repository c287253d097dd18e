"""Networks to train, by name: ``list()``, ``create(name, num_classes, ...)``, ``example_inputs(name, ...)``."""

from stompp_kernels.models.bert import EncoderClassifier
from stompp_kernels.models.bireal import BiRealBlock
from stompp_kernels.models.mlp import MLP
from stompp_kernels.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from stompp_kernels.models.registry import Entry, create, entry, example_inputs, register
from stompp_kernels.models.registry import list_models as list
from stompp_kernels.models.residual import SmallResNet
from stompp_kernels.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "MLP",
    "BasicBlock",
    "BiRealBlock",
    "Bottleneck",
    "EncoderClassifier",
    "Entry",
    "InvertedResidual",
    "MobileNetV2",
    "ResNet",
    "SmallResNet",
    "create",
    "entry",
    "example_inputs",
    "list",
    "register",
]
