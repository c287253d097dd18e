"""ReActNet-A after Liu et al., "ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions".

From the paper (ECCV 2020, arXiv 2003.03488): MobileNetV1's stages of depthwise and pointwise convolutions with full
ones in the depthwise ones' place, all binarized, each with a real-valued shortcut around it; twice as many channels by
two pointwise convolutions side by side; RSign before and RPReLU after each convolution. Ours: what binarizes is
StoMPP's clip and sign in place of the paper's approximated gradient, weights start as ``sk.prepare`` draws them, and
there is no teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes, kaiming_
from stompp_kernels.models.registry import images, register
from stompp_kernels.models.shifts import RPReLU, Shift

# Channels in units of `width` and the stride of each block, as MobileNetV1's.
MOBILENET_STAGES = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))


class ShiftedConv(nn.Sequential):
    """RSign, a convolution to be binarized, and BatchNorm.

    Args:
        in_channels, out_channels, kernel_size, stride: of the convolution, which pads to keep the size.

    Example:
        >>> sk.models.ShiftedConv(8, 16, 3, stride=2)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.shift = Shift(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class ReActBlock(nn.Module):
    """A 3x3 convolution and one or two 1x1 convolutions of the same signs, with a shortcut around each.

    Args:
        in_channels: input channels.
        out_channels: as many, or twice as many.
        stride: of the 3x3 convolution; 2 halves the map, and the shortcut by average pooling.

    Raises:
        ValueError: ``out_channels`` is neither.

    Example:
        >>> sk.models.ReActBlock(8, 16, stride=2)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"out_channels must be {in_channels} or {2 * in_channels}, got {out_channels}")
        self.spatial = ShiftedConv(in_channels, in_channels, 3, stride)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.act1 = RPReLU(in_channels)
        self.shift = Shift(in_channels)
        self.pointwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, in_channels, 1, bias=False), nn.BatchNorm2d(in_channels))
            for _ in range(out_channels // in_channels)
        )
        self.act2 = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, OH, OW] for [B, in_channels, H, W]."""
        x = self.act1(self.spatial(x) + self.pool(x))
        shifted = self.shift(x)
        sums = [conv(shifted) + x for conv in self.pointwise]
        return self.act2(sums[0] if len(sums) == 1 else torch.cat(sums, 1))


class MobileNetStages(nn.Sequential):
    """A stem in float, blocks in MobileNetV1's stages, global average pooling, one linear layer.

    Args:
        num_classes, width, in_channels, stem_stride, stages: as of :class:`ReActNet`.
        block: makes a block of its number, its input and output channels and its stride.
        activation: makes what follows the blocks of their channels; None: nothing does.

    Raises:
        ValueError: a size is no integer of at least 1.

    Example:
        >>> from stompp_kernels.models.reactnet import MobileNetStages, ShiftedConv
        >>> def block(index, in_channels, out_channels, stride):
        ...     return ShiftedConv(in_channels, out_channels, 3, stride)
        >>> MobileNetStages(10, 4, 3, 2, ((2, 1), (4, 2)), block)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        in_channels: int,
        stem_stride: int,
        stages: Sequence[tuple[int, int]],
        block: Callable[[int, int, int, int], nn.Module],
        activation: Callable[[int], nn.Module] | None = None,
    ) -> None:
        check_sizes(num_classes=num_classes, width=width, in_channels=in_channels, stem_stride=stem_stride)
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential()
        channels = width
        for index, (factor, stride) in enumerate(stages):
            self.blocks.append(block(index, channels, factor * width, stride))
            channels = factor * width
        if activation is not None:
            self.act = activation(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        kaiming_(self)


class ReActNet(MobileNetStages):
    """ReActNet-A: a stem in float, 13 blocks, global average pooling, one linear layer.

    Args:
        num_classes: outputs.
        width: channels of the stem.
        in_channels: of the images.
        stem_stride: of the stem; 2 for ImageNet, 1 for small images.
        stages: output channels in units of ``width`` and stride of each block; the channels stay or double.

    Shape:
        [B, in_channels, H, W] to [B, num_classes], for any H and W.

    Raises:
        ValueError: a size is no integer of at least 1.

    Example:
        >>> sk.models.ReActNet(width=4)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 32,
        in_channels: int = 3,
        stem_stride: int = 2,
        stages: Sequence[tuple[int, int]] = MOBILENET_STAGES,
    ) -> None:
        def block(_: int, channels: int, out_channels: int, stride: int) -> nn.Module:
            return ReActBlock(channels, out_channels, stride)

        super().__init__(num_classes, width, in_channels, stem_stride, stages, block)


register(
    "reactnet_a",
    ReActNet,
    "ReActNet-A: MobileNetV1's stages of full convolutions, shifts that learn before signs and around PReLU",
    example=partial(images, image_size=224),
)
