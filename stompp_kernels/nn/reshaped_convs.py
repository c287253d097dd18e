"""Convolutions of one dimension and transposed ones, run by the binary convolution of two dimensions.

A sequence is an image of height 1. A transposed convolution whose kernel is a multiple of its stride s gives, at each
of the s x s phases of its output, what a plain convolution with a kernel of a part of its weights gives: all phases are
one convolution with s x s times the channels, whose pixels are then shuffled. No weight is used twice, none is zero.

The attributes that models read, such as ``stride``, are those of the layer of torch that they stand for; ``geometry``
is that of the convolution that runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.nn.binary import BinaryConv2d
from stompp_kernels.nn.packed_on_floats import of_the_layer
from stompp_kernels.ops.geometry import Geometry

_OF_TORCH = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class AsSequence:
    """Sequences [B, C, L] as images [B, C, 1, L]."""

    def to_images(self, x: Any) -> Any:
        """Makes of a layer's input that of the convolution of two dimensions."""
        return x.unsqueeze(2)

    def from_images(self, y: Any) -> Any:
        """Makes of the output of the convolution of two dimensions the layer's."""
        return y.squeeze(2)


@dataclass(frozen=True)
class OfPhases:
    """Images whose phases are channels, and how much of their border is cut off at both ends."""

    upscale: int
    crop: tuple[int, int]

    def to_images(self, x: Any) -> Any:
        """Makes of a layer's input that of the plain convolution: the same."""
        return x

    def from_images(self, y: Any) -> Any:
        """Shuffles the phases of the plain convolution's output, and cuts its border off."""
        y = F.pixel_shuffle(y, self.upscale)
        start, end = self.crop
        inside = slice(start, -end if end else None)
        return y[:, :, inside, inside] if start or end else y


class BinaryConv1d(BinaryConv2d):
    """1-D convolution with progressive weights, which are [O, C / groups, 1, kernel].

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in torch.nn.Conv1d, numbers.
        options: the others of :class:`BinaryConv2d`.

    Shape:
        [B, C, L] to [B, O, OL].

    Example:
        >>> layer = sk.nn.BinaryConv1d(8, 16, 3, padding=1, binarize_input=True)
        >>> layer(torch.randn(2, 8, 20)).shape
        torch.Size([2, 16, 20])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        geometry = (1, kernel_size), (1, stride), (0, padding), (1, dilation)
        super().__init__(in_channels, out_channels, *geometry, groups, **options)
        self.reshape = AsSequence()
        self.kernel_size, self.stride, self.padding, self.dilation = (kernel_size,), (stride,), (padding,), (dilation,)

    @property
    def geometry(self) -> Geometry:
        """The numbers of the two-dimensional convolution that runs."""
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        return Geometry((1, stride), (0, padding), (1, dilation), self.groups, self.padding_value)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves floats [B, C, L] with u' and returns floats [B, O, OL] of their type, scaled, with the bias.

        Raises:
            ValueError: ``x`` does not have three dimensions.
        """
        if x.dim() != 3:
            raise ValueError(f"x must be [B, C, L], got shape {list(x.shape)}")
        y = self._finish(self._product(self.reshape.to_images(self._activated(x))), 3)
        return self.reshape.from_images(y)


class BinaryConvTranspose2d(BinaryConv2d):
    """Transposed 2-D convolution with progressive weights, which are those of all phases as a plain convolution's.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups: as in torch.nn.ConvTranspose2d,
            numbers; the kernel is a multiple of the stride, and the output's padding at most the padding.
        options: the others of :class:`BinaryConv2d`; bias and alpha are one for each output channel and phase.

    Shape:
        [B, C, H, W] to [B, O, OH, OW].

    Raises:
        ValueError: the kernel is no multiple of the stride, or the output's padding is too large.

    Example:
        >>> layer = sk.nn.BinaryConvTranspose2d(8, 16, 4, stride=2, padding=1, binarize_input=True)
        >>> layer(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 16, 12, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        groups: int = 1,
        **options: Any,
    ) -> None:
        if stride < 1 or kernel_size % stride:
            raise ValueError(f"kernel_size must be a multiple of stride {stride}, got {kernel_size}")
        if not 0 <= output_padding <= padding:
            raise ValueError(f"output_padding must be at most padding {padding}, got {output_padding}")
        kernel = kernel_size // stride
        super().__init__(in_channels, out_channels * stride**2, kernel, 1, kernel - 1, 1, groups, **options)
        self.reshape = OfPhases(stride, (padding, padding - output_padding))
        self.out_channels, self.output_padding = out_channels, (output_padding, output_padding)
        self.kernel_size, self.stride, self.padding = (kernel_size,) * 2, (stride,) * 2, (padding,) * 2

    @property
    def geometry(self) -> Geometry:
        """The numbers of the plain convolution that runs."""
        kernel = self.weight.shape[-1]
        return Geometry((1, 1), (kernel - 1, kernel - 1), (1, 1), self.groups, self.padding_value)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves floats [B, C, H, W] with u' and returns floats [B, O, OH, OW] of their type."""
        return self.reshape.from_images(super().forward(x))


RESHAPED = (BinaryConv1d, BinaryConvTranspose2d)


def make_plain(layer: BinaryConv1d | BinaryConvTranspose2d) -> None:
    """Makes the two-dimensional convolution of a layer that runs, which takes and gives images."""
    geometry, plain = layer.geometry, cast(Any, layer)
    plain.__class__ = BinaryConv2d
    plain.out_channels, plain.kernel_size = layer.weight.shape[0], tuple(layer.weight.shape[2:])
    plain.stride, plain.padding, plain.dilation = geometry[:3]


def weight_of_phases(weight: Tensor, stride: int, groups: int) -> Tensor:
    """Returns the weights [O * s * s, C / groups, k / s, k / s] of a transposed convolution's [C, O / groups, k, k]."""
    C, O, k, _ = weight.shape
    parts = weight.reshape(groups, C // groups, O, k // stride, stride, k // stride, stride)
    return parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, C // groups, k // stride, k // stride).flip(-1, -2)


def reshape_of(layer: nn.Module) -> AsSequence | OfPhases | None:
    """Returns how inputs and outputs of one of these layers, or of torch's that it stands for, are reshaped."""
    if isinstance(layer, (nn.Conv1d, BinaryConv1d)):
        return AsSequence()
    if isinstance(layer, (nn.ConvTranspose2d, BinaryConvTranspose2d)):
        (stride, _), (padding, _), (output_padding, _) = (
            cast("tuple[int, int]", sizes) for sizes in (layer.stride, layer.padding, layer.output_padding)
        )
        return OfPhases(stride, (padding, padding - output_padding))
    return None


class ReshapedLayer(nn.Module):
    """A packed convolution of two dimensions where the model calls one of another kind.

    Args:
        layer: takes and gives floats.
        replaced: the layer in whose place it stands, a binary one or torch's: a convolution of sequences or a
            transposed one.

    Raises:
        ValueError: ``replaced`` is of another kind.

    Example:
        >>> from stompp_kernels.nn.reshaped_convs import ReshapedLayer
        >>> layer = ReshapedLayer(nn.Conv2d(8, 16, (1, 3), (1, 2)), sk.nn.BinaryConv1d(8, 16, 3, stride=2))
        >>> layer(torch.randn(2, 8, 21)).shape, layer.stride
        (torch.Size([2, 16, 10]), (2,))
    """

    def __init__(self, layer: nn.Module, replaced: nn.Module) -> None:
        super().__init__()
        reshape = reshape_of(replaced)
        if reshape is None:
            raise ValueError(
                f"replaced must be a Conv1d or a ConvTranspose2d, float or binary, got {type(replaced).__name__}"
            )
        self.layer, self.reshape = layer, reshape
        for name in _OF_TORCH:
            setattr(self, name, getattr(replaced, name))

    weight, bias = of_the_layer("weight"), of_the_layer("bias")

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer on images."""
        return self.reshape.from_images(self.layer(self.reshape.to_images(x)))
