"""BinaryViT after Le & Li, "BinaryViT: Pushing Binary Vision Transformers Towards Convolutional Models".

From the paper and its code (CVPR workshops 2023, arXiv 2306.16678): a transformer that is a pyramid of four stages,
with attention to keys and values that average pooling reduced; a shortcut around every linear layer, an RSign before
and an RPReLU after it; average pooling beside the feed-forward layers; a scale and a shift for each channel before the
main shortcuts; the mean of the tokens in place of a class token. Ours: tokens are the pixels of images, so that linear
layers are 1x1 convolutions and all norms BatchNorms, which fold into what a packed layer does; the projections between
stages stay in float; what binarizes is StoMPP's clip and sign; and there is no teacher. Queries, keys and values stay
floats behind their layers, as does the attention between them, unless ``binary_attention`` is given: the paper
binarizes these too, see :class:`BinaryAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes
from stompp_kernels.models.reactnet import ShiftedConv
from stompp_kernels.models.registry import images, register
from stompp_kernels.models.shifts import RPReLU, Shift
from stompp_kernels.nn import BinaryMatmul

_HEAD = 64  # channels of a head


class BinaryViTLinear(nn.Module):
    """RSign, a 1x1 convolution to be binarized and BatchNorm, a shortcut around them, RPReLU.

    Where there are more output channels than input channels, the shortcut repeats the input; where there are fewer, it
    is a mean of channels, of those that a repetition would have made of one: in channels_last they lie in whole rows.
    A mean of neighbours would be the same network with its hidden channels in another order.

    Args:
        in_channels, out_channels: one is a multiple of the other.

    Example:
        >>> sk.models.BinaryViTLinear(8, 16)(torch.randn(1, 8, 6, 6)).shape
        torch.Size([1, 16, 6, 6])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = ShiftedConv(in_channels, out_channels, 1)
        self.repeats, self.shares = max(1, out_channels // in_channels), max(1, in_channels // out_channels)
        self.act = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, H, W] for [B, in_channels, H, W]."""
        shortcut = x
        if self.repeats > 1:
            shortcut = torch.cat([x] * self.repeats, 1)
        elif self.shares > 1:
            parts = x.chunk(self.shares, 1)  # which torch.fx cannot iterate over
            shortcut = reduce(torch.add, (parts[i] for i in range(self.shares))) / self.shares
        return self.act(self.linear(x) + shortcut)


class LayerScale(nn.Module):
    """A scale and a shift that are learned for each channel.

    Args:
        channels: C, of images [B, C, H, W].
        scale: what each scale starts with.

    Example:
        >>> sk.models.LayerScale(3, 0.5)(torch.full((1, 3, 1, 1), 4.0)).flatten().tolist()
        [2.0, 2.0, 2.0]
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), scale))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` with each channel scaled and shifted."""
        return x * self.scale + self.bias


def _heads(x: Tensor, heads: int) -> Tensor:
    """Returns [B, heads, H * W, channels of a head] for [B, channels, H, W]."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


class BinaryAttention(nn.Module):
    """Attention whose two products are of bits: queries times keys, and attention times values.

    From the paper: queries, keys and values become signs behind a shift that is learned for each channel; what comes
    out of the softmax of the scores, which are divided by the root of a head's channels, becomes 0 or alpha by a
    learned threshold of alpha / 2, after BiT (Liu et al., NeurIPS 2022), here for each head. Ours: the softmax stays in
    float; what is learned is ``gain``, 2 / alpha, and starts so that a key counts whose share is at least the mean,
    where the paper starts alpha at 0.005; and a key counts 1 and not alpha, for a BatchNorm follows.

    Args:
        channels: of queries, keys and values.
        heads: a divisor of ``channels``.
        keys: pixels of an image of keys.

    Shape:
        [B, channels, H, W] for queries and [B, channels, h, w] for keys and values to [B, heads, H * W, channels of a
        head].

    Example:
        >>> x, reduced = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)
        >>> sk.models.BinaryAttention(8, heads=2, keys=4)(x, reduced, reduced).shape
        torch.Size([1, 2, 16, 4])
    """

    def __init__(self, channels: int, heads: int, keys: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.query_shift, self.key_shift, self.value_shift = (Shift(channels) for _ in range(3))
        self.scores, self.mix = BinaryMatmul(), BinaryMatmul(zero_one=True)
        self.gain = nn.Parameter(torch.full((heads, 1, 1), float(keys)))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Returns for each pixel and head the sum of the values that count for it, in a head's channels."""
        query, key = (_heads(x, self.heads) for x in (self.query_shift(query), self.key_shift(key)))
        shares = F.softmax(self.scores(query, key) * self.scale, -1)
        return self.mix(shares * self.gain - 1, _heads(self.value_shift(value), self.heads).transpose(2, 3))


class BinaryViTAttention(nn.Module):
    """Attention of pixels to pixels, with binarized layers for queries, keys, values and output.

    Args:
        channels: of input and output, a multiple of 64 or one head.
        reduction: keys and values are of images smaller by this factor.
        keys: pixels of such an image, for :class:`BinaryAttention`; None: the attention itself is in float.

    Example:
        >>> sk.models.BinaryViTAttention(64, reduction=2)(torch.randn(1, 64, 4, 4)).shape
        torch.Size([1, 64, 4, 4])
    """

    def __init__(self, channels: int, reduction: int, keys: int | None = None) -> None:
        super().__init__()
        self.heads = max(1, channels // _HEAD)
        self.query, self.key, self.value = (BinaryViTLinear(channels, channels) for _ in range(3))
        self.reduce = nn.Sequential()
        if reduction > 1:
            self.reduce = nn.Sequential(nn.AvgPool2d(reduction), BinaryViTLinear(channels, channels))
        self.products = None if keys is None else BinaryAttention(channels, self.heads, keys)
        self.norm = nn.BatchNorm2d(channels)
        self.act = RPReLU(channels)
        self.output = BinaryViTLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, channels, H, W] for the same."""
        reduced = self.reduce(x)
        query, key, value = self.query(x), self.key(reduced), self.value(reduced)
        if self.products is None:
            mixed = F.scaled_dot_product_attention(*(_heads(part, self.heads) for part in (query, key, value)))
        else:
            mixed = self.products(query, key, value)
        size = x.shape[2:]
        mixed = mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, size)  # in channels_last
        shortcut = query + F.interpolate(key, size) + F.interpolate(value, size)
        return self.output(self.act(self.norm(mixed) + shortcut))


class BinaryViTBlock(nn.Module):
    """Attention and feed-forward layers, with a main shortcut around each.

    Args:
        channels: of input and output.
        hidden: of the feed-forward layers, a multiple of ``channels``.
        reduction, keys: of the attention.

    Example:
        >>> sk.models.BinaryViTBlock(64, 128, reduction=1)(torch.randn(1, 64, 4, 4)).shape
        torch.Size([1, 64, 4, 4])
    """

    def __init__(self, channels: int, hidden: int, reduction: int, keys: int | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.attention = BinaryViTAttention(channels, reduction, keys)
        self.expand, self.contract = BinaryViTLinear(channels, hidden), BinaryViTLinear(hidden, channels)
        self.scale1, self.scale2 = LayerScale(channels, 0.1), LayerScale(channels, 0.1)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(size, 1, (size[0] // 2, size[1] // 2)), LayerScale(channels, 0.0))
            for size in ((3, 1), (1, 3), (5, 1), (1, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, channels, H, W] for the same."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        y = self.norm2(x)
        x = x + self.scale2(self.contract(self.expand(y)))
        for pool in self.pools:
            x = x + pool(y)
        return x


class BinaryViT(nn.Sequential):
    """A pyramid of blocks: a stem that takes patches, four stages, the mean of the pixels, one linear layer.

    Args:
        num_classes: outputs.
        width: channels of the first stage; each stage has twice as many as the one before.
        depths: blocks of each stage.
        expansions: hidden channels of the feed-forward layers of each stage, in units of its channels.
        reductions: of the attention of each stage.
        in_channels: of the images.
        patch_size: of the stem; each later stage halves the map.
        image_size: of the images, a multiple of 8 * patch_size; positions are learned for it.
        binary_attention: let the attention multiply bits too, by :class:`BinaryAttention`.

    Shape:
        [B, in_channels, image_size, image_size] to [B, num_classes].

    Raises:
        ValueError: a size is not allowed.

    Example:
        >>> sk.models.BinaryViT(width=8, depths=(1, 1, 1, 1), image_size=32)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 8, 4),
        expansions: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 1, 1),
        in_channels: int = 3,
        patch_size: int = 4,
        image_size: int = 224,
        binary_attention: bool = False,
    ) -> None:
        check_sizes(num_classes=num_classes, width=width, in_channels=in_channels, patch_size=patch_size)
        smallest = patch_size * 2 ** (len(depths) - 1)
        if image_size % smallest or image_size < smallest:
            raise ValueError(f"image_size must be a multiple of {smallest}, got {image_size}")
        super().__init__()
        channels, size, patch = in_channels, image_size, patch_size
        for index, (depth, expansion, reduction) in enumerate(zip(depths, expansions, reductions, strict=True)):
            wider, size = width * 2**index, size // patch
            self.add_module(f"patches{index + 1}", BinaryViTPatches(channels, wider, patch, size))
            reduction = min(reduction, size)
            keys = (size // reduction) ** 2 if binary_attention else None
            blocks = [BinaryViTBlock(wider, expansion * wider, reduction, keys) for _ in range(depth)]
            self.add_module(f"stage{index + 1}", nn.Sequential(*blocks))
            channels, patch = wider, 2
        self.norm = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)


class BinaryViTPatches(nn.Module):
    """A convolution in float that makes one pixel of each patch, BatchNorm, and positions that are learned.

    Args:
        in_channels, out_channels: of the images.
        patch_size: height and width of a patch.
        size: height and width of the output.

    Example:
        >>> sk.models.BinaryViTPatches(3, 8, patch_size=4, size=2)(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, patch_size, patch_size, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, out_channels, size, size), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_channels, size, size] for images larger by ``patch_size``."""
        return self.norm(self.projection(x)) + self.positions


register(
    "binary_vit",
    BinaryViT,
    "BinaryViT: a pyramid of attention and feed-forward layers with a shortcut around each binarized layer",
    example=partial(images, image_size=224),
    prepare_options={"keep": (r"(^|[._])projection$",)},
)
