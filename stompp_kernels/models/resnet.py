"""Residual networks after He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016).

Post-activation: the ReLU after the addition feeds the next block's first convolution and its shortcut alike, so that
once it is committed both read signs, and in the STE-free regime no gradient passes either.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes, kaiming_
from stompp_kernels.models.registry import images, register
from stompp_kernels.ops.checks import check_choice

STEMS = ("imagenet", "cifar")


class Block(nn.Module):
    """Base of the blocks that :class:`ResNet` stacks; made from input channels, channels and stride.

    Attributes:
        expansion: output channels in units of ``channels``.
        activated_input: the block reads the output of an activation, the stem's or that of the block before.
    """

    expansion = 1
    activated_input = True


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut around both; the first one has the stride.

    Args:
        in_channels, channels: input and output channels.
        stride: of the block; 2 halves the map.

    Example:
        >>> sk.models.BasicBlock(8, 16, stride=2)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, channels, OH, OW] for [B, in_channels, H, W]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut around all; the 3x3 one has the stride.

    Args:
        in_channels: input channels.
        channels: those of the 3x3 convolution; the output has four times as many.
        stride: of the block; 2 halves the map.

    Example:
        >>> sk.models.Bottleneck(16, 8, stride=2)(torch.randn(1, 16, 6, 6)).shape
        torch.Size([1, 32, 3, 3])
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, 4 * channels, OH, OW] for [B, in_channels, H, W]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + self.downsample(x))


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Makes the shortcut: a projection where the shape changes (the paper's option B), else the input itself."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Sequential):
    """A residual network: stem, stages of blocks, global average pooling, one linear layer.

    Parameters have torchvision's names, so that weights of its ResNets fit the ImageNet forms.

    Args:
        block: what the stages are made of.
        depths: blocks of each stage. Every stage has twice the channels of the one before and, but for the first, a map
            of half its size.
        stem: "imagenet", a 7x7 convolution of stride 2 and max-pooling of stride 2; or "cifar", a 3x3 convolution.
        num_classes: outputs.
        width: channels of the first stage.
        in_channels: of the images.

    Shape:
        [B, in_channels, H, W] to [B, num_classes], for any H and W.

    Raises:
        ValueError: ``stem`` is neither, or a size is no integer of at least 1.

    Example:
        >>> model = sk.models.ResNet(sk.models.BasicBlock, (1, 1), "cifar", width=8)
        >>> model(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: type[Block],
        depths: Sequence[int],
        stem: str,
        num_classes: int = 10,
        width: int = 64,
        in_channels: int = 3,
    ) -> None:
        check_choice("stem", stem, STEMS)
        check_sizes(width=width, in_channels=in_channels, num_classes=num_classes)
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        if block.activated_input:
            self.relu = nn.ReLU()
        if stem == "imagenet":
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for index, depth in enumerate(depths):
            stage = nn.Sequential()
            for number in range(depth):
                stage.append(block(channels, width * 2**index, 2 if index > 0 and number == 0 else 1))
                channels = block.expansion * width * 2**index
            self.add_module(f"layer{index + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        kaiming_(self)


for _depth, _block, _depths in (
    (18, BasicBlock, (2, 2, 2, 2)),
    (34, BasicBlock, (3, 4, 6, 3)),
    (50, Bottleneck, (3, 4, 6, 3)),
):
    register(
        f"resnet{_depth}",
        partial(ResNet, _block, _depths, "imagenet"),
        f"ResNet-{_depth}, ImageNet form: 7x7 stem of stride 2, max-pooling",
        example=partial(images, image_size=224),
    )
    register(
        f"resnet{_depth}_cifar",
        partial(ResNet, _block, _depths, "cifar"),
        f"ResNet-{_depth}, CIFAR form: 3x3 stem, no pooling",
    )
for _depth in (20, 32, 56):
    register(
        f"resnet{_depth}",
        partial(ResNet, BasicBlock, ((_depth - 2) // 6,) * 3, "cifar", width=16),
        f"ResNet-{_depth} for CIFAR: three stages of 16, 32 and 64 channels",
    )
