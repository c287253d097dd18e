"""Networks of torchvision, most of them with fewer channels or blocks than under their names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from corpus.network import Network, images


def load() -> Any:
    """torchvision, beside a torch for CPU too, where builds for CUDA lack the names of two ops."""
    try:
        import torchvision
    except RuntimeError:
        ops = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            ops.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def available() -> bool:
    return importlib.util.find_spec("torchvision") is not None


def _net(name: str, size: int = 32, **options: Any) -> tuple[nn.Module, Any]:
    return getattr(load().models, name)(num_classes=10, **options), images(size)


def _resnet(block: str, **options: Any) -> tuple[nn.Module, Any]:
    resnet = load().models.resnet
    return resnet.ResNet(getattr(resnet, block), num_classes=10, **options), images()


def _vgg() -> tuple[nn.Module, Any]:
    vgg = load().models.vgg
    net = vgg.VGG(vgg.make_layers([16, "M", 32, "M", 64, 64, "M"], batch_norm=True), 10, init_weights=False)
    net.classifier[0], net.classifier[3], net.classifier[6] = (
        nn.Linear(64 * 49, 64),
        nn.Linear(64, 64),
        nn.Linear(64, 10),
    )
    return net, images()


def _convnext() -> tuple[nn.Module, Any]:
    convnext = load().models.convnext
    blocks = [convnext.CNBlockConfig(16, 32, 2), convnext.CNBlockConfig(32, None, 2)]
    return convnext.ConvNeXt(blocks, num_classes=10), images()


def _vit() -> tuple[nn.Module, Any]:
    kind = load().models.VisionTransformer
    return kind(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10), images()


def _swin(name: str) -> tuple[nn.Module, Any]:
    swin = load().models.swin_transformer
    block = {"swin": swin.SwinTransformerBlock, "swin v2": swin.SwinTransformerBlockV2}[name]
    merging = {"swin": swin.PatchMerging, "swin v2": swin.PatchMergingV2}[name]
    net = swin.SwinTransformer(
        [4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10, block=block, downsample_layer=merging
    )
    return net, images()


def _maxvit() -> tuple[nn.Module, Any]:
    net = load().models.maxvit.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=10)
    return net, images(64)


def _efficientnet() -> tuple[nn.Module, Any]:
    net = load().models.efficientnet
    settings = [net.MBConvConfig(1, 3, 1, 16, 8, 1), net.MBConvConfig(4, 3, 2, 8, 16, 2)]
    settings += [net.MBConvConfig(4, 5, 2, 16, 24, 1)]
    return net.EfficientNet(settings, 0.2, 0.2, num_classes=10, last_channel=64), images()


def _segmentation(name: str) -> tuple[nn.Module, Any]:
    make = getattr(load().models.segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=5), images(64)


def _video() -> tuple[nn.Module, Any]:
    video = load().models.video.resnet
    net = video.VideoResNet(
        video.BasicBlock, [video.Conv3DSimple] + [video.Conv3DNoTemporal] * 3, [1, 1, 1, 1], video.BasicStem, 10
    )
    return net, torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


MAKERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "vgg with batch norm": _vgg,
    "resnet18": partial(_resnet, "BasicBlock", layers=[2, 1, 1, 1]),
    "resnext50": partial(_resnet, "Bottleneck", layers=[1, 2, 1, 1], groups=8, width_per_group=4),
    "wide resnet50": partial(_resnet, "Bottleneck", layers=[1, 1, 1, 1], width_per_group=32),
    "densenet": lambda: (load().models.DenseNet(8, (2, 3), 16, num_classes=10), images()),
    "squeezenet1_1": partial(_net, "squeezenet1_1", 64),
    "mobilenet_v2": partial(_net, "mobilenet_v2", width_mult=0.35),
    "mobilenet_v3_small": partial(_net, "mobilenet_v3_small"),
    "shufflenet_v2_x0_5": partial(_net, "shufflenet_v2_x0_5"),
    "regnet_x_400mf": partial(_net, "regnet_x_400mf"),
    "regnet_y_400mf": partial(_net, "regnet_y_400mf"),
    "efficientnet": _efficientnet,
    "googlenet": partial(_net, "googlenet", 64, init_weights=False, aux_logits=False),
    "convnext": _convnext,
    "vit": _vit,
    "swin": partial(_swin, "swin"),
    "swin v2": partial(_swin, "swin v2"),
    "maxvit": _maxvit,
    "lraspp": partial(_segmentation, "lraspp_mobilenet_v3_large"),
    "video resnet": _video,
}
NETWORKS = [Network(f"torchvision {name}", "torchvision", make) for name, make in MAKERS.items()]
