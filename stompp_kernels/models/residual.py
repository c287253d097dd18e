"""A small post-activation residual network, plain float PyTorch: `sk.prepare` makes it progressive."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stompp_kernels.models.registry import register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around both and an activation after the sum, after He et al. 2016.

    The activation after the addition feeds the next block's convolution and its shortcut alike, so once it is committed
    the whole next block reads signs.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.Hardtanh()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.act2 = nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, OH, OW] for [B, in_channels, H, W]."""
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.downsample(x))


class SmallResNet(nn.Module):
    """A small post-activation residual network: stem, blocks, one linear layer on the flattened map.

    Args:
        in_channels, image_size, num_classes: of the data; images are square.
        widths: channels of each block.
        strides: of each block; 2 halves the map.

    Shape:
        [B, in_channels, image_size, image_size] to [B, num_classes].

    Example:
        >>> sk.models.SmallResNet(widths=(8, 16), strides=(1, 2))(torch.randn(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        num_classes: int = 10,
        widths: Sequence[int] = (64, 64, 64, 64),
        strides: Sequence[int] = (1, 1, 2, 1),
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.act = nn.Hardtanh()
        blocks: list[nn.Module] = []
        channels, size = widths[0], image_size
        for width, stride in zip(widths, strides, strict=True):
            blocks.append(BasicBlock(channels, width, stride))
            channels, size = width, size // stride
        self.blocks = nn.Sequential(*blocks)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels * size * size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, in_channels, image_size, image_size]."""
        return self.fc(self.flatten(self.blocks(self.act(self.bn(self.stem(x))))))


register("small_resnet", SmallResNet, "Post-activation residual network of 8 binarized 3x3 convolutions, for digits")
