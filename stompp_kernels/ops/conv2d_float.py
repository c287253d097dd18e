"""Convolution with float weights: the layers of a packed network that stay in float, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import check_choice, check_float_conv2d, check_per_output, check_tensor
from stompp_kernels.ops.epilogue import Affine
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.geometry import Geometry, conv2d_out_sizes
from stompp_kernels.ops.gradients import Conv2dFloat, float_panels, gradient_wanted, multiply_add, refuse_to_cut
from stompp_kernels.ops.layer_weight import LayerWeight
from stompp_kernels.ops.pack import pack_outside, unpack_signs
from stompp_kernels.ops.reference import round_float_panels, unpack_float_weight, words_for

_conv2d_float, _conv2d_float_signs = torch.ops.stompp.conv2d_float.default, torch.ops.stompp.conv2d_float_signs.default


@dataclass(frozen=True, eq=False)
class Limits:
    """Packed bits that say where a sum is below ``low`` or above ``high``: BatchNorm and sign.

    :func:`stompp_kernels.ops.pack_outside` makes the same comparison on floats.

    Attributes:
        low, high: float32 [O].

    Example:
        >>> weight = pack_float_weight(torch.ones(1, 1, 1, 1))
        >>> limits = Limits(low=torch.tensor([0.5]), high=torch.tensor([torch.inf]))
        >>> words = conv2d_float(torch.tensor([[[[0.0, 1.0]]]]), weight, epilogue=limits)
        >>> unpack_signs(words, 1).flatten()
        tensor([-1.,  1.])
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class FloatWeight(LayerWeight):
    """Float weights in the order that the kernels read, the same on every machine; no tensor (:class:`LayerWeight`).

    Attributes:
        data: float32 [ceil(O/32), kh * kw * I, 32], zeros behind the last output; or bfloat16 [ceil(O/32), ceil(kh * kw
            * I / 32), parts, 16, 32, 2], zeros behind the last output and the last input.
        shape: [O, I, kh, kw].
        dtype: of the floats that its layer writes.

    Example:
        >>> weight = pack_float_weight(torch.randn(40, 3, 7, 7))
        >>> weight.shape, weight.data.shape
        ((40, 3, 7, 7), torch.Size([2, 147, 32]))
    """

    data: Tensor
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32

    _held = "a float convolution's weight, which holds floats in its kernels' order"
    _method = "unpacked"

    @property
    def nbytes(self) -> int:
        """Bytes in memory.

        Example:
            >>> pack_float_weight(torch.randn(32, 3, 1, 1)).nbytes
            384
        """
        return self.data.numel() * self.data.element_size()

    def unpacked(self) -> Tensor:
        """Returns the weights, float32 [O, I, kh, kw]; those that were rounded to bfloat16 as they are now.

        Example:
            >>> w = torch.randn(40, 3, 7, 7)
            >>> torch.equal(pack_float_weight(w).unpacked(), w)
            True
        """
        return unpack_float_weight(self.data, self.shape)


def pack_float_weight(w: Tensor, bfloat16_parts: int = 0) -> FloatWeight:
    """Brings weights into the order that :func:`conv2d_float` reads.

    Args:
        w: float32 [O, I, kh, kw].
        bfloat16_parts: 0 keeps float32. 1 rounds to bfloat16; 2 makes each weight the sum of two bfloat16, which is at
            most 2^-17 of it off. See :func:`conv2d_float` for what is computed with them.

    Raises:
        TypeError, ValueError: ``w`` is not as above, or empty, or there is another number of parts.
        RuntimeError: rounding would cut a gradient.

    Example:
        >>> pack_float_weight(torch.randn(64, 3, 7, 7)).shape
        (64, 3, 7, 7)
    """
    check_tensor("w", w, (torch.float32,))
    if w.dim() != 4 or w.numel() == 0:
        raise ValueError(f"w must be [O, I, kh, kw], each at least 1, got shape {list(w.shape)}")
    check_choice("bfloat16_parts", bfloat16_parts, (0, 1, 2))
    O, I, kh, kw = w.shape
    panels = float_panels(w)
    if bfloat16_parts:
        _refuse_gradient("w", w)
        panels = round_float_panels(panels, bfloat16_parts)
    return FloatWeight(panels, (O, I, kh, kw))


def conv2d_float(
    x: Tensor,
    weight: FloatWeight,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    epilogue: Affine | Limits | None = None,
) -> Tensor:
    """Convolves float32, or +-1 packed as bits, with float weights, and pads with zeros.

    On the CPU a sum is one chain of fused multiply-adds over the kernel's rows, its columns and channels, in that
    order: the same bits on every processor and with any number of threads. oneDNN adds in that order too for most
    channels_last images, so these are mostly the bits of torch's convolution. Elsewhere it is torch's convolution, on
    GPUs with one kernel behind it for the epilogue, which may round a multiplication and an addition once or each.

    With Limits the sums themselves are not needed: those of large images are found by Winograd's minimal filtering
    (Lavin & Gray, CVPR 2016), and added up as chains where its error bound holds a limit. The words are the same.

    Weights in bfloat16 are multiplied by instructions for it where the implementation has them ("amx", on processors
    with AMX-BF16): x is rounded to bfloat16, signs are exact, and sums are float32. With two parts and signs, sums are
    within 2^-16 of the sum of magnitudes; with floats and one part, within 2^-7 of it, and mostly far nearer.
    Everywhere else float32 is multiplied, with weights that are the sums of their parts.

    Without Limits x, the weights, scale and bias get their gradients; weights in bfloat16 get none.

    Args:
        x: float32 [N, C, H, W]; channels_last is read as it lies, other strides are copied. Or words of signs, int32
            [N, H, W, ceil(C/32)].
        weight: [O, C, kh, kw], made by :func:`pack_float_weight`.
        stride, padding, dilation: an int or (height, width), in pixels.
        epilogue: None gives the sums, Affine (fp32, without residual and RPReLU) scales and shifts them, Limits
            gives words.

    Returns:
        float32 [N, O, OH, OW], channels_last, or int32 words [N, OH, OW, ceil(O/32)].

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or range is not as above, or the kernel's reach is
            larger than the padded input.
        RuntimeError: Limits would cut a gradient, see :func:`stompp_kernels.ops.signs_as_constants`.

    Example:
        >>> weight = pack_float_weight(torch.full((1, 2, 3, 3), 0.5))
        >>> conv2d_float(torch.ones(1, 2, 3, 3), weight)
        tensor([[[[9.]]]])
        >>> words = pack_signs(-torch.ones(1, 3, 3, 2))  # the same from bits: one image, NHWC
        >>> conv2d_float(words, weight, epilogue=Affine(torch.tensor([2.0]), torch.tensor([1.0])))
        tensor([[[[-17.]]]])
    """
    geometry = stride, padding, dilation
    if not isinstance(weight, FloatWeight) or not _has_parts(epilogue):
        _check(x, weight, Geometry(*geometry), epilogue)
    return conv2d_float_form(x, weight.data, weight.shape, geometry, *_parts_of(epilogue))


def conv2d_float_form(
    x: Tensor,
    panels: Tensor,
    shape: tuple[int, int, int, int],
    geometry: tuple[Any, Any, Any],
    constants: tuple[Tensor, ...],
    fused: bool | None,
) -> Tensor:
    """Does what :func:`conv2d_float` does with the parts of its weight and epilogue, of which no object is made.

    Args:
        x: as there.
        panels, shape: of a :class:`FloatWeight`.
        geometry: stride, padding and dilation.
        constants, fused: scale and bias of an Affine, and whether it is fused; low and high of Limits, and None;
            or nothing, and False.
    """
    if not native.kernels_check(x):
        _check_parts(x, panels, shape, geometry, constants, fused)
    try:
        if panels.dtype is torch.bfloat16:
            _refuse_gradient("weight.data", panels)
        wanted = gradient_wanted(x, panels, *constants)
        if fused is None:
            low, high = constants
            if wanted:
                refuse_to_cut("conv2d_float with Limits", x=x, weight=panels, low=low, high=high)
        if x.is_cuda:
            y = conv2d_by_torch(x, FloatWeight(panels, shape).unpacked(), geometry, constants, fused)
            return y if fused is None else y.contiguous(memory_format=torch.channels_last)
        if fused is None:
            return _conv2d_float_signs(x, panels, shape, *geometry, low, high)
        scale, bias = constants or (None, None)
        if wanted:
            pairs = [[value, value] if isinstance(value, int) else value for value in geometry]
            return Conv2dFloat.apply(x, panels, shape, *pairs, scale, bias, fused)
        return _conv2d_float(x, panels, shape, *geometry, scale, bias, fused)
    except Exception:
        _check_parts(x, panels, shape, geometry, constants, fused)  # says in our terms what the kernel refused
        raise


def _parts_of(epilogue: Affine | Limits | None) -> tuple[tuple[Tensor, ...], bool | None]:
    if epilogue is None:
        return (), False
    if isinstance(epilogue, Limits):
        return (epilogue.low, epilogue.high), None
    return (epilogue.scale, epilogue.bias), epilogue.fused


def _check_parts(
    x: Tensor,
    panels: Tensor,
    shape: tuple[int, int, int, int],
    geometry: tuple[Any, Any, Any],
    constants: tuple[Tensor, ...],
    fused: bool | None,
) -> None:
    epilogue: Affine | Limits | None = None
    if constants:
        first, second = constants
        epilogue = Limits(first, second) if fused is None else Affine(first, second, fused=fused)
    _check(x, FloatWeight(panels, shape), Geometry(*geometry), epilogue)


def _has_parts(epilogue: Any) -> bool:
    """Whether an epilogue is None, Limits, or an Affine of nothing but scale and bias."""
    if isinstance(epilogue, Affine):
        others = epilogue.residual, epilogue.residual_scale, epilogue.residual_bias, epilogue.rprelu
        return epilogue.dtype is torch.float32 and all(other is None for other in others)
    return epilogue is None or isinstance(epilogue, Limits)


def conv2d_by_torch(
    x: Tensor, w: Tensor, geometry: tuple[Any, Any, Any], constants: tuple[Tensor, ...], fused: bool | None
) -> Tensor:
    """Computes the same by torch's convolution: on GPUs that, and one kernel behind it.

    Args:
        x: as for :func:`conv2d_float`.
        w: float32 [O, C, kh, kw].
        geometry, constants, fused: as for :func:`conv2d_float_form`.
    """
    if x.dtype is torch.int32:
        x = unpack_signs(x, w.shape[1]).permute(0, 3, 1, 2)
    y = F.conv2d(x, w, None, *geometry).permute(0, 2, 3, 1)
    if fused is None:
        return pack_outside(y, *constants)
    if constants:
        scale, bias = constants
        # On GPUs rounding once, as the reference does, takes a dozen kernels on float64, and sums have their own order.
        y = multiply_add(y, scale, bias, fused) if y.is_cpu else torch.addcmul(bias, y, scale)
    return y.permute(0, 3, 1, 2)


def _refuse_gradient(name: str, weights: Tensor) -> None:
    if torch.is_grad_enabled() and weights.requires_grad:
        raise RuntimeError(f"{name} must not require a gradient, which weights in bfloat16 do not get: detach it")


def _check(x: Tensor, weight: FloatWeight, geometry: Geometry, epilogue: Affine | Limits | None) -> None:
    if not isinstance(weight, FloatWeight):
        raise TypeError(f"weight must be a FloatWeight made by pack_float_weight, got {type(weight).__name__}")
    check_float_conv2d(x, weight.data, weight.shape, geometry)
    if isinstance(epilogue, Limits):
        check_per_output(weight.shape[0], low=epilogue.low, high=epilogue.high)
    elif isinstance(epilogue, Affine):
        epilogue.check(weight.shape[:1])
        bare = epilogue.residual is None and epilogue.rprelu is None
        if not bare or epilogue.dtype is not torch.float32:
            raise ValueError("epilogue must be without a residual or an RPReLU and of float32 for conv2d_float")
    elif epilogue is not None:
        raise TypeError(f"epilogue must be None, Affine or Limits, got {type(epilogue).__name__}")


def _out_shape(x: Tensor, weight_shape: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Returns [N, OH, OW, O]."""
    size = x.shape[1:3] if x.dtype is torch.int32 else x.shape[2:]
    return x.shape[0], *conv2d_out_sizes(size, weight_shape[2:], geometry), weight_shape[0]


@register_fake("conv2d_float")
def _(x, weight, weight_shape, stride, padding, dilation, scale, bias, fused):
    shape = _out_shape(x, weight_shape, Geometry(stride, padding, dilation))
    return x.new_empty(shape, dtype=torch.float32).permute(0, 3, 1, 2)


@register_fake("conv2d_float_signs")
def _(x, weight, weight_shape, stride, padding, dilation, low, high):
    *pixels, O = _out_shape(x, weight_shape, Geometry(stride, padding, dilation))
    return x.new_empty((*pixels, words_for(O)), dtype=torch.int32)
