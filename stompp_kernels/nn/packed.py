"""The inference twins: layers whose weights, and mostly activations too, are bits.

Activations travel as words: int32 [B, H, W, ceil(C/32)] for images (NHWC), [..., ceil(K/32)] for features. A packed
layer reads words and writes floats (affine epilogue), the next layer's words (threshold epilogue), or, where a float
shortcut joins, the words of a float sum and perhaps the sum too (signs of an affine epilogue). State dicts hold the
portable word order; it is packed for the running machine when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from stompp_kernels.nn.gives_floats import GivesFloats, narrowed
from stompp_kernels.nn.state import refused_casts
from stompp_kernels.ops import (
    Affine,
    AffineSigns,
    PackedWeight,
    Threshold,
    max_pool2d_signs,
    pack_outside,
    pack_signs,
    unpack_signs,
)
from stompp_kernels.ops.bconv2d import bconv2d_in_parts
from stompp_kernels.ops.bgemm import bgemm_in_parts
from stompp_kernels.ops.checks import pair
from stompp_kernels.ops.epilogue import parts_of
from stompp_kernels.ops.forms import AFFINE, AFFINE_SIGNS, THRESHOLD, Form
from stompp_kernels.ops.geometry import conv2d_out_size
from stompp_kernels.ops.gradients import multiply_add
from stompp_kernels.ops.reference import apply_rprelu

_Product: TypeAlias = Callable[[tuple[Any, ...], Form, tuple[Any, ...]], Any]


class PackSigns(nn.Module):
    """Packs the signs of floats: [B, C, H, W] to int32 [B, H, W, ceil(C/32)], or [..., K] to [..., ceil(K/32)].

    Args:
        images: the input has channels in its second dimension.

    Raises:
        RuntimeError: at a call: the input requires a gradient, which signs do not pass; see
            :func:`stompp_kernels.ops.signs_as_constants`.

    Example:
        >>> sk.nn.PackSigns(images=True)(torch.randn(2, 40, 8, 8)).shape
        torch.Size([2, 8, 8, 2])
    """

    def __init__(self, images: bool) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Packs ``x``, of float32, float16, bfloat16 or float64; 0 and NaN have the sign +1."""
        x = narrowed(x)
        return pack_signs(x.permute(0, 2, 3, 1) if self.images else x)

    def extra_repr(self) -> str:
        return f"images={self.images}"


class PackBatchNorm(GivesFloats):
    """Computes BatchNorm, sign and packing in one pass.

    Buffers: ``low`` and ``high`` float32 [C], see :func:`stompp_kernels.ops.pack_outside`. A new layer, whose limits
    are infinite, gives +1 everywhere.

    Args:
        channels: C.
        images: the input has channels in its second dimension and two more behind it.

    Shape:
        [B, C, H, W] to [B, H, W, ceil(C/32)], or [B, C] to [B, ceil(C/32)].

    Example:
        >>> layer = sk.nn.PackBatchNorm(2, images=False)
        >>> layer.low.copy_(torch.tensor([0.5, -1.0])).tolist()  # -1 below these values
        [0.5, -1.0]
        >>> layer(torch.tensor([[0.0, 0.0]])).tolist()  # the signs -1 and +1 as bits
        [[1]]
    """

    def __init__(self, channels: int, images: bool) -> None:
        super().__init__()
        self.channels, self.images = channels, images
        self.register_buffer("low", torch.full((channels,), -torch.inf, dtype=torch.float32))
        self.register_buffer("high", torch.full((channels,), torch.inf, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Compares each value of ``x`` with its channel's limits and returns words."""
        x, own = narrowed(x), self._buffers  # nn.Module's own way to a buffer takes longer
        return pack_outside(x.permute(0, 2, 3, 1) if self.images else x, own["low"], own["high"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        problems = refused_casts(state_dict, prefix, dict.fromkeys(("low", "high"), (torch.float32,)))
        args[-1].extend(problems)
        if not problems:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.channels}, images={self.images}"


class UnpackSigns(GivesFloats):
    """Unpacks words to +-1 floats: the inverse of :class:`PackSigns`.

    Args:
        channels: C of images, or K features.
        images: words are [B, H, W, ceil(C/32)] and become [B, C, H, W]; else [..., ceil(K/32)] become [..., K].
        stride: (height, width) of images: every so many-th pixel only is unpacked, from the first on.

    Raises:
        ValueError: a stride is given and there are no images.

    Example:
        >>> words = sk.nn.PackSigns(images=False)(torch.tensor([[0.3, -2.0, 0.0]]))
        >>> sk.nn.UnpackSigns(3, images=False)(words).tolist()
        [[1.0, -1.0, 1.0]]
    """

    def __init__(self, channels: int, images: bool, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.channels, self.images, self.stride = channels, images, pair("stride", stride, 1)
        if not images and self.stride != (1, 1):
            raise ValueError(f"stride must be 1 where there are no images, got {stride}")

    def forward(self, words: Tensor) -> Tensor:
        """Returns floats of the type that the network has, float32 unless it was cast."""
        if self.stride != (1, 1):
            words = words[:, :: self.stride[0], :: self.stride[1]]
        x = unpack_signs(words, self.channels, self.dtype)
        return x.permute(0, 3, 1, 2) if self.images else x

    def extra_repr(self) -> str:
        return f"{self.channels}, images={self.images}, stride={self.stride}"


class MaxPoolSigns(nn.Module):
    """Pools +-1 images as words: int32 [B, H, W, ceil(C/32)] to [B, OH, OW, ceil(C/32)].

    The arguments are those of nn.MaxPool2d.

    Example:
        >>> words = sk.nn.PackSigns(images=True)(torch.randn(1, 32, 8, 8))
        >>> sk.nn.MaxPoolSigns(2)(words).shape
        torch.Size([1, 4, 4, 1])
    """

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, words: Tensor) -> Tensor:
        """Gives each output pixel +1 where any pixel of its window has it; padding never counts."""
        return max_pool2d_signs(words, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class PackedLayer(GivesFloats):
    """Base of the packed layers: a packed weight with one of the three epilogues.

    A shortcut that the layer adds is given to each call. Buffers: ``scale`` and ``bias`` float32 [N] (affine, and its
    signs), with ``residual_scale`` and ``residual_bias`` where the shortcut has its own, ``rprelu`` float32 [3, N] and
    ``limits`` float32 [2, N] where :class:`stompp_kernels.ops.AffineSigns` has them; or ``thresholds`` int32
    [1 or 2, N] and ``flip_words`` int32 [ceil(N/32)] (threshold; two rows where a +-1 residual picks one).

    Attributes:
        weight: the packed weight.
        writes: "floats", "bits", or "both", in that order.
        fused: whether scale and bias are one multiply-add, see :class:`stompp_kernels.ops.Affine`.
        replaces: names of the modules of the float network whose work it does, in order.
        why_floats: why it writes floats though signs alone are read behind it; empty elsewhere.
    """

    why_floats = ""

    def __init__(
        self, weight: PackedWeight, epilogue: Affine | AffineSigns | Threshold, replaces: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.weight, self.replaces = weight, replaces
        self.writes, self.fused = "floats", False
        if isinstance(epilogue, Threshold):
            self.writes = "bits"
            self.register_buffer("thresholds", epilogue.thresholds)
            self.register_buffer("flip_words", epilogue.flip_words)
            self.register_buffer("bias", None)  # as every float layer has one, or None
            return
        self.fused = epilogue.fused
        if isinstance(epilogue, AffineSigns):
            self.writes = "both" if epilogue.floats else "bits"
        self.register_buffer("scale", epilogue.scale)
        self.register_buffer("bias", epilogue.bias)
        self.register_buffer("residual_scale", epilogue.residual_scale)
        self.register_buffer("residual_bias", epilogue.residual_bias)
        self.register_buffer("rprelu", epilogue.rprelu)
        self.register_buffer("limits", epilogue.limits if isinstance(epilogue, AffineSigns) else None)

    @property
    def has_thresholds(self) -> bool:
        """Whether signs are decided on integers."""
        return "thresholds" in self._buffers

    def _out_shape(self, x_words: Tensor) -> tuple[int, ...]:
        """Returns the shape of the op's sums."""
        raise NotImplementedError

    def _finish(self, product: _Product, arguments: tuple[Any, ...], residual: Tensor | None) -> Any:
        """Runs a product with the layer's epilogue.

        Args:
            product: of ops/product.py.
            arguments: its own, of which the words come first.
            residual: words for a threshold, else floats, channels last.
        """
        own = self._buffers  # nn.Module's own way to a buffer takes longer, and there are many
        if "thresholds" in own:
            return product(arguments, THRESHOLD, (own["thresholds"], own["flip_words"], residual))
        if residual is not None:
            if tuple(residual.shape) != self._out_shape(arguments[0]):
                return self._finish_broadcast(product, arguments, residual)
            residual = narrowed(residual)
        writes = self.writes
        linear = own["scale"], own["bias"], residual, own["residual_scale"], own["residual_bias"], self.fused
        if writes == "floats":
            return self._cast(product(arguments, AFFINE, (*linear, torch.float32, own["rprelu"])))
        y = product(arguments, AFFINE_SIGNS, (*linear, writes == "both", own["rprelu"], own["limits"]))
        return (self._cast(y[0]), y[1]) if writes == "both" else y

    def _finish_broadcast(self, product: _Product, arguments: tuple[Any, ...], residual: Tensor) -> Any:
        if self.residual_scale is not None:
            residual = multiply_add(residual, self.residual_scale, self.residual_bias, self.fused)
        y = product(arguments, *parts_of(Affine(self.scale, self.bias, fused=self.fused))) + residual
        if self.rprelu is not None:
            y = apply_rprelu(y, self.rprelu)
        if self.writes == "floats":
            return self._cast(y)
        words = pack_signs(narrowed(y)) if self.limits is None else pack_outside(narrowed(y), *self.limits)
        return (self._cast(y), words) if self.writes == "both" else words

    @property
    def nbytes(self) -> int:
        """The bytes of the packed weight and the epilogue in memory."""
        return self.weight.nbytes + sum(b.numel() * b.element_size() for b in self.buffers())

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, dtype=self.dtype)).device
        self.weight = replace(self.weight.to(device), dtype=self.dtype)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.words()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        dtypes = {name: (buffer.dtype,) for name, buffer in self.named_buffers(recurse=False)}
        problems = refused_casts(state_dict, prefix, {**dtypes, "weight": (torch.int32,)})
        if problems:
            args[-1].extend(problems)
            return
        words = state_dict.pop(prefix + "weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        missing = args[2]
        if words is None:
            missing.append(prefix + "weight")
        else:
            weight = self.weight.from_words(words.to(self.weight.device), self.weight.shape, self.weight.groups)
            self.weight = replace(weight, dtype=self.dtype)

    def extra_repr(self) -> str:
        return f"shape={list(self.weight.shape)}, groups={self.weight.groups}, writes {self.writes}"


class LinearAttributes:
    """Gives a packed layer the attributes that models read of nn.Linear."""

    weight: Any

    @property
    def in_features(self) -> int:
        """The number of inputs, K."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The number of outputs, N."""
        return self.weight.shape[0]


class Conv2dAttributes:
    """Gives a packed layer the attributes that models read of nn.Conv2d."""

    weight: Any

    @property
    def in_channels(self) -> int:
        """The number of input channels, C."""
        return self.weight.shape[1] * self.weight.groups

    @property
    def out_channels(self) -> int:
        """The number of output channels, O."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.weight.groups


class PackedLinear(LinearAttributes, PackedLayer):
    """Linear layer on bits: int32 words [..., ceil(K/32)] to floats [..., N], words [..., ceil(N/32)], or both.

    Args:
        weight: made by :func:`stompp_kernels.ops.pack_weight`.
        epilogue: ``Affine`` for floats, ``Threshold`` for words, ``AffineSigns`` for the signs of floats, perhaps with
            the floats.
        replaces: names of the modules of the float network whose work it does, in order.

    Example:
        >>> weight = sk.ops.pack_weight(torch.randn(8, 64))
        >>> layer = sk.nn.PackedLinear(weight, sk.ops.Affine(torch.ones(8), torch.zeros(8)))
        >>> layer(sk.ops.pack_signs(torch.randn(4, 64))).shape
        torch.Size([4, 8])
    """

    def forward(self, x_words: Tensor, residual: Tensor | None = None) -> Any:
        """Multiplies the words by the weight and applies the epilogue.

        Args:
            x_words: int32 [..., ceil(K/32)].
            residual: a shortcut to add: floats [..., N], or words [..., ceil(N/32)] where the epilogue is a threshold.
        """
        weight = self.weight
        return self._finish(bgemm_in_parts, (x_words, weight.data, *weight.shape), residual)

    def _out_shape(self, x_words: Tensor) -> tuple[int, ...]:
        return (*x_words.shape[:-1], self.weight.shape[0])


class PackedConv2d(Conv2dAttributes, PackedLayer):
    """Convolution on bits: int32 words to floats, words, or both.

    Args:
        weight: made by :func:`stompp_kernels.ops.pack_conv_weight`.
        epilogue: as in :class:`PackedLinear`.
        stride, padding, dilation, padding_value: as in :func:`stompp_kernels.ops.bconv2d`.
        replaces: names of the modules of the float network whose work it does, in order.

    Shape:
        int32 [B, H, W, ceil(C/32)] to floats [B, O, OH, OW], or words [B, OH, OW, ceil(O/32)].

    Example:
        >>> weight = sk.ops.pack_conv_weight(torch.randn(16, 32, 3, 3))
        >>> affine = sk.ops.Affine(torch.ones(16), torch.zeros(16))
        >>> layer = sk.nn.PackedConv2d(weight, affine, (1, 1), (1, 1), (1, 1), 0)
        >>> layer(sk.nn.PackSigns(images=True)(torch.randn(2, 32, 8, 8))).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        weight: PackedWeight,
        epilogue: Affine | AffineSigns | Threshold,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        padding_value: int,
        replaces: tuple[str, ...] = (),
    ) -> None:
        super().__init__(weight, epilogue, replaces)
        self.stride, self.padding, self.dilation, self.padding_value = stride, padding, dilation, padding_value

    def forward(self, x_words: Tensor, residual: Tensor | None = None) -> Any:
        """Convolves the words with the weight and applies the epilogue.

        Args:
            x_words: int32 [B, H, W, ceil(C/32)].
            residual: a shortcut to add: floats [B, O, OH, OW], or words [B, OH, OW, ceil(O/32)] where the epilogue is a
                threshold.
        """
        if residual is not None and not self.has_thresholds:
            if residual.dim() < 4:
                residual = residual[(None,) * (4 - residual.dim())]
            residual = residual.permute(0, 2, 3, 1)
        weight, geometry = self.weight, (self.stride, self.padding, self.dilation)
        arguments = x_words, weight.data, weight.shape, *geometry, weight.groups, self.padding_value
        y, writes = self._finish(bconv2d_in_parts, arguments, residual), self.writes
        if writes == "both":
            return y[0].permute(0, 3, 1, 2), y[1]
        return y if writes == "bits" else y.permute(0, 3, 1, 2)

    def _out_shape(self, x_words: Tensor) -> tuple[int, ...]:
        if x_words.dim() != 4:
            return ()  # no residual fits, and the product says what is wrong
        B, H, W, _ = x_words.shape
        O, _, kh, kw = self.weight.shape
        sizes = zip((H, W), (kh, kw), self.stride, self.padding, self.dilation, strict=True)
        return B, *[conv2d_out_size(*size) for size in sizes], O

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
