"""BNext-T after Guo et al., "Join the High Accuracy Club on ImageNet with A Binary Neural Network Ticket".

From the paper and its code (arXiv 2211.12933): ReActNet-A's stages; behind each binarized convolution a BatchNorm, a
PReLU, and a factor for each channel that squeeze-and-excite computes in float from the mean of input and output
("Info-RCP"); in every other block the 3x3 convolution's output is multiplied by the shortcut before it is added to it
("ELM attention"). Ours: what binarizes is StoMPP's clip to [-1, 1] and sign in place of the paper's clip to
[-1.5, 1.5] with a temperature, squeeze-and-excite stays in float, and there are no teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from stompp_kernels.models.reactnet import MOBILENET_STAGES, MobileNetStages, ShiftedConv
from stompp_kernels.models.registry import images, register

_SQUEEZE = 8  # channels of squeeze-and-excite: one for so many


class Recoupling(nn.Module):
    """Multiplies y by a factor for each channel that squeeze-and-excite computes from a mean of x and y.

    The mean is weighted: a number in [0, 1] that is learned for each channel says how much of x it holds.

    Args:
        channels: C, of images [B, C, H, W].

    Example:
        >>> x, y = torch.randn(2, 1, 16, 4, 4)
        >>> sk.models.Recoupling(16)(x, y).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _SQUEEZE)
        self.share = nn.Parameter(torch.full((channels,), 0.5))
        self.squeeze = nn.Linear(channels, hidden)
        self.relu = nn.ReLU()
        self.excite = nn.Linear(hidden, channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns ``y`` scaled; ``x`` has its shape."""
        share = self.share.clamp(0, 1)
        # The mean over pixels of a weighted sum is the weighted sum of the means, of which there are fewer.
        mean = share * x.mean((2, 3)) + (1 - share) * y.mean((2, 3))
        factor = self.sigmoid(self.excite(self.relu(self.squeeze(mean))))
        return y * factor[:, :, None, None]


class BNextUnit(nn.Module):
    """A binarized convolution with what recouples it, and a shortcut around both.

    Args:
        channels: of input and output.
        kernel_size: 1 or 3.
        stride: 2 halves the map, and the shortcut by average pooling.
        attention: the shortcut passes a PReLU and multiplies the output before it is added.

    Example:
        >>> sk.models.BNextUnit(16, 3, stride=2, attention=True)(torch.randn(1, 16, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, attention: bool = False) -> None:
        super().__init__()
        self.conv = ShiftedConv(channels, channels, kernel_size, stride)
        self.act = nn.PReLU(channels)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.recoupling = Recoupling(channels)
        self.shortcut_act = nn.PReLU(channels) if attention else None
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, channels, OH, OW] for [B, channels, H, W]."""
        pooled = self.pool(x)
        y = self.recoupling(pooled, self.act(self.conv(x)))
        if self.shortcut_act is None:
            return self.bn(y) + pooled
        shortcut = self.pool(self.shortcut_act(x))
        return self.bn(y * shortcut) + shortcut


class BNextBlock(nn.Module):
    """A 3x3 unit and one or two 1x1 units, whose outputs are concatenated.

    Args:
        in_channels: input channels.
        out_channels: as many, or twice as many.
        stride: of the 3x3 unit.
        attention: of the 3x3 unit.

    Raises:
        ValueError: ``out_channels`` is neither.

    Example:
        >>> sk.models.BNextBlock(8, 16, 2, attention=False)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, attention: bool) -> None:
        super().__init__()
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"out_channels must be {in_channels} or {2 * in_channels}, got {out_channels}")
        self.spatial = BNextUnit(in_channels, 3, stride, attention)
        self.pointwise = nn.ModuleList(BNextUnit(in_channels, 1) for _ in range(out_channels // in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, OH, OW] for [B, in_channels, H, W]."""
        x = self.spatial(x)
        outputs = [unit(x) for unit in self.pointwise]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class BNext(MobileNetStages):
    """BNext-T: a stem in float, 13 blocks, PReLU, global average pooling, one linear layer.

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
        >>> sk.models.BNext(width=8)(torch.randn(2, 3, 32, 32)).shape
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
        def block(index: int, channels: int, out_channels: int, stride: int) -> nn.Module:
            return BNextBlock(channels, out_channels, stride, attention=index % 2 == 1)

        super().__init__(num_classes, width, in_channels, stem_stride, stages, block, nn.PReLU)


register(
    "bnext_t",
    BNext,
    "BNext-T: ReActNet-A's stages with squeeze-and-excite in float beside each binarized convolution",
    example=partial(images, image_size=224),
    prepare_options={"keep": (r"(^|[._])(squeeze|excite)$",)},
)
