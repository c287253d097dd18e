"""MobileNetV2 after Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes, kaiming_
from stompp_kernels.models.registry import images, register
from stompp_kernels.ops.checks import check_choice

# The paper's table 2: expansion, output channels, repeats, stride of the first.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM, _HEAD = 32, 1280
_CIFAR_STRIDES = (1, 1, 2, 2, 1, 2, 1)


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 and a 1x1 projection without activation; a shortcut where the shape stays.

    The shortcut carries real values, and what follows a projection binarizes its own input.

    Args:
        in_channels, out_channels: input and output channels.
        stride: of the depthwise convolution.
        expansion: channels of the depthwise convolution in units of ``in_channels``.

    Example:
        >>> sk.models.InvertedResidual(8, 16, stride=2, expansion=6)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.expand = nn.Identity() if expansion == 1 else _conv_bn_relu6(in_channels, hidden, 1)
        self.depthwise = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, OH, OW] for [B, in_channels, H, W]."""
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.has_shortcut else y


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


def _scaled(channels: int, width: float) -> int:
    """Returns the multiple of 8 nearest to channels * width, at least 8, and not below it by more than a tenth."""
    wanted = channels * width
    nearest = max(8, int(wanted / 8 + 0.5) * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


class MobileNetV2(nn.Sequential):
    """Stem, inverted residuals, a 1x1 convolution, global average pooling, dropout, one linear layer.

    Args:
        form: "imagenet", which divides the map by 32, or "cifar", whose stem and second stage keep its size.
        num_classes: outputs.
        width: multiplier of the channels; the last convolution's only where it is above 1.
        in_channels: of the images.

    Shape:
        [B, in_channels, H, W] to [B, num_classes], for any H and W.

    Raises:
        ValueError: an argument has a value that is not allowed.

    Example:
        >>> model = sk.models.MobileNetV2("cifar", width=0.25).eval()
        >>> model(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 10])
    """

    def __init__(self, form: str, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> None:
        check_choice("form", form, ("imagenet", "cifar"))
        check_sizes(in_channels=in_channels, num_classes=num_classes)
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        super().__init__()
        channels, head = _scaled(_STEM, width), _scaled(_HEAD, max(width, 1.0))
        self.stem = _conv_bn_relu6(in_channels, channels, 3, 2 if form == "imagenet" else 1)
        self.blocks = nn.Sequential()
        for index, (expansion, base, repeats, imagenet_stride) in enumerate(_STAGES):
            stride = imagenet_stride if form == "imagenet" else _CIFAR_STRIDES[index]
            for number in range(repeats):
                out_channels = _scaled(base, width)
                block = InvertedResidual(channels, out_channels, stride if number == 0 else 1, expansion)
                self.blocks.append(block)
                channels = out_channels
        self.head = _conv_bn_relu6(channels, head, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(head, num_classes)
        kaiming_(self)


register(
    "mobilenet_v2",
    partial(MobileNetV2, "imagenet"),
    "MobileNetV2, ImageNet form",
    example=partial(images, image_size=224),
)
register(
    "mobilenet_v2_cifar",
    partial(MobileNetV2, "cifar"),
    "MobileNetV2, CIFAR form: the map is divided by 8, not by 32",
)
