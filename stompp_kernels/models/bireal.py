"""Bi-Real-18 after Liu et al., "Bi-Real Net: Enhancing the Performance of 1-bit CNNs" (ECCV 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stompp_kernels.models.registry import images, register
from stompp_kernels.models.resnet import Block, ResNet


class BiRealBlock(Block):
    """One 3x3 convolution and a shortcut around it that carries real values.

    The activation stands before the convolution, apart from the shortcut, and is the clip that the paper trains the
    float network with: of a ReLU's output all signs would be +1.

    Args:
        in_channels, channels: input and output channels.
        stride: of the block; 2 halves the map.

    Example:
        >>> sk.models.BiRealBlock(8, 16, stride=2)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    activated_input = False

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.act = nn.Hardtanh()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(2, stride, ceil_mode=True),  # odd sizes are halved as the convolution halves them
                nn.Conv2d(in_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, channels, OH, OW] for [B, in_channels, H, W]."""
        return self.bn(self.conv(self.act(x))) + self.downsample(x)


register(
    "bireal18",
    partial(ResNet, BiRealBlock, (4, 4, 4, 4), "imagenet"),
    "Bi-Real-18, ImageNet form: a real-valued shortcut around each convolution",
    example=partial(images, image_size=224),
)
register(
    "bireal18_cifar",
    partial(ResNet, BiRealBlock, (4, 4, 4, 4), "cifar"),
    "Bi-Real-18, CIFAR form: 3x3 stem, no pooling",
)
