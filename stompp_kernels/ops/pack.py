"""Packing of signs and weights.

The bit contract: bit 1 means -1, that is ``x < 0``; bit 0 means +1, so 0, -0.0 and NaN pack as +1. Bits are LSB first
in little-endian int32 words along the last dimension (features, or NHWC channels). K counts elements, the tail bits of
a row's last word are 0, and words given to an op must keep to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stompp_kernels import native
from stompp_kernels.ops.checks import (
    FLOATS,
    SHORT_FLOATS,
    check_limits,
    check_shape,
    check_short_floats,
    check_tensor,
    check_weight_shape,
    check_words,
)
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.gradients import gradient_wanted, refuse_to_cut
from stompp_kernels.ops.layer_weight import LayerWeight
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.schemas import kernels_for

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

_ops = torch.ops.stompp
# Looked up once: small inputs take microseconds.
_pack_signs, _pack_outside = _ops.pack_signs.default, _ops.pack_outside.default
_unpack_signs = _ops.unpack_signs.default


def pack_signs(x: Tensor, check_nan: bool = False) -> Tensor:
    """Packs the signs of ``x`` as bits.

    Args:
        x: float32, float16 or bfloat16, shape [..., K], any strides.
        check_nan: refuse NaN instead of packing it as +1; costs a pass over ``x``.

    Returns:
        int32 words, shape [..., ceil(K/32)].

    Raises:
        TypeError: another dtype.
        ValueError: no last dimension, an empty one, or NaN with ``check_nan``.
        RuntimeError: x requires a gradient, which would be cut here, see
            :func:`stompp_kernels.ops.signs_as_constants`.

    Example:
        >>> pack_signs(torch.tensor([[-1.5, 2.0, -0.0], [1.0, -3.0, -0.5]]))  # bit 1 means -1, bit 0 +1
        tensor([[1],
                [6]], dtype=torch.int32)
    """
    compiled = native.kernels_check(x)
    if check_nan or not compiled:
        _check_floats(x, check_nan)
    try:
        if gradient_wanted(x):
            refuse_to_cut("pack_signs", x=x)
        return _pack_signs(x) if compiled else kernels_for(x).pack_signs.default(x)
    except Exception:
        _check_floats(x, check_nan)
        raise


def _check_floats(x: Tensor, check_nan: bool) -> None:
    check_short_floats(x)
    if check_nan and bool(x.isnan().any()):
        raise ValueError("x must not contain NaN (check_nan=True), got some")


def pack_outside(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Packs bits that say where ``x`` is below ``low`` or above ``high``.

    BatchNorm is monotone in each channel, so its sign is such a comparison: ``x < low`` where it rises (``high`` is
    infinite), ``x > high`` where it falls. NaN gives 0, which is +1.

    Args:
        x: float32, float16 or bfloat16, shape [..., K], any strides; compared as float32.
        low, high: float32 [K].

    Returns:
        int32 words, shape [..., ceil(K/32)].

    Raises:
        TypeError, ValueError: an argument is not as above.
        RuntimeError: a gradient would be cut, as by :func:`pack_signs`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
        >>> low, high = torch.tensor([1.0, -torch.inf]), torch.tensor([torch.inf, 1.0])
        >>> unpack_signs(pack_outside(x, low, high), 2)
        tensor([[-1.,  1.],
                [ 1., -1.]])
    """
    compiled = native.kernels_check(x)
    if not compiled:
        check_limits(x, low, high)
    try:
        if gradient_wanted(x, low, high):
            refuse_to_cut("pack_outside", x=x, low=low, high=high)
        return _pack_outside(x, low, high) if compiled else kernels_for(x).pack_outside.default(x, low, high)
    except Exception:
        check_limits(x, low, high)
        raise


def unpack_signs(words: Tensor, K: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpacks words into signs: the inverse of :func:`pack_signs`.

    Args:
        words: int32 [..., ceil(K/32)].
        K: signs of a row.
        dtype: of the result: float32, float16, bfloat16 or float64.

    Returns:
        +1 or -1 of ``dtype``, shape [..., K].

    Raises:
        TypeError: ``words`` are not int32, or ``dtype`` is not a floating-point type.
        ValueError: the words' last dimension does not fit K.

    Example:
        >>> unpack_signs(torch.tensor([[1], [6]], dtype=torch.int32), 3)
        tensor([[-1.,  1.,  1.],
                [ 1., -1., -1.]])
    """
    compiled = native.kernels_check(words)
    if not compiled:
        _check_unpacked(words, K, dtype)
    try:
        return (_unpack_signs if compiled else kernels_for(words).unpack_signs.default)(words, K, dtype)
    except Exception:
        _check_unpacked(words, K, dtype)
        raise


def _check_unpacked(words: Tensor, K: int, dtype: torch.dtype) -> None:
    check_tensor("words", words, (torch.int32,))
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype}")
    check_words("words", words, K)


@dataclass(frozen=True, eq=False)
class PackedWeight(LayerWeight):
    """Binary weights in the order that this machine's kernels read; no tensor, see :class:`LayerWeight`.

    Attributes:
        data: uint8 [bytes], opaque: a header, sums for borders, panels. Never store it; store :meth:`words`.
        shape: logical shape, (N, K) or (O, I/groups, kh, kw).
        groups: of the convolution; 1 for a matrix.
        dtype: of the floats that its layer writes.

    Example:
        >>> weight = pack_weight(torch.tensor([[0.3, -0.1, 2.0], [-1.0, 0.0, -5.0]]))
        >>> weight.shape, weight.groups, weight.dtype
        ((2, 3), 1, torch.float32)
        >>> weight.unpack()
        tensor([[ 1., -1.,  1.],
                [-1.,  1., -1.]])
    """

    data: Tensor
    shape: tuple[int, ...]
    groups: int = 1
    dtype: torch.dtype = torch.float32

    _held = "a packed weight, which holds signs as bits"
    _method = "unpack"

    @classmethod
    def from_words(cls, words: Tensor, shape: Sequence[int], groups: int = 1) -> Self:
        """Packs words in the portable order for this machine's kernels.

        Args:
            words: int32 [N, ceil(K/32)] or [O, kh, kw, ceil(I/groups/32)], on the device whose kernels will read them.
            shape: (N, K) or (O, I/groups, kh, kw).
            groups: of the convolution.

        Raises:
            TypeError, ValueError: the words do not fit the shape, or groups do not divide O.

        Example:
            >>> words = torch.tensor([[2], [5]], dtype=torch.int32)
            >>> PackedWeight.from_words(words, (2, 3)).unpack()
            tensor([[ 1., -1.,  1.],
                    [-1.,  1., -1.]])
        """
        shape = tuple(int(size) for size in shape)
        check_weight_shape(shape, groups)
        check_tensor("words", words, (torch.int32,))
        O, I, *kernel = shape
        check_shape("words", words, (O, *kernel, words_for(I)))
        return cls(cls._pack(words, shape, groups), shape, groups)

    def words(self) -> Tensor:
        """Returns the words in the portable order, with zero tails: the inverse of :meth:`from_words`.

        Returns:
            int32 [N, ceil(K/32)] or [O, kh, kw, ceil(I/groups/32)].

        Example:
            >>> pack_weight(torch.tensor([[0.3, -0.1, 2.0], [-1.0, 0.0, -5.0]])).words()
            tensor([[2],
                    [5]], dtype=torch.int32)
        """
        return self._unpack(self.data, self.shape, self.groups)

    def to(self, device: torch.device | str) -> Self:
        """Packs the same weights for another device's kernels.

        Example:
            >>> weight = pack_weight(torch.ones(2, 3))
            >>> weight.to("cpu") is weight
            True
        """
        if self.data.device == torch.device(device):
            return self
        return replace(self.from_words(self.words().to(device), self.shape, self.groups), dtype=self.dtype)

    @staticmethod
    def _pack(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
        return _ops.pack_weight_words(words, shape, groups)

    @staticmethod
    def _unpack(data: Tensor, shape: Sequence[int], groups: int) -> Tensor:
        return _ops.unpack_weight_words(data, shape, groups)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the weights as +1 and -1 of ``dtype``, in their logical shape.

        Raises:
            TypeError: ``dtype`` is not a floating-point type.

        Example:
            >>> pack_conv_weight(-torch.ones(1, 2, 1, 1)).unpack(torch.float16).flatten()
            tensor([-1., -1.], dtype=torch.float16)
        """
        w = unpack_signs(self.words(), self.shape[1], dtype)
        return w if len(self.shape) == 2 else w.permute(0, 3, 1, 2)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, header and border sums included.

        Example:
            >>> weight = pack_weight(torch.ones(2, 3))
            >>> weight.nbytes >= weight.portable_nbytes
            True
        """
        return self.data.numel()

    @property
    def unpacked_row_numel(self) -> int:
        """K, the number of weights of one output.

        Example:
            >>> pack_conv_weight(torch.ones(2, 3, 5, 5)).unpacked_row_numel
            75
        """
        return math.prod(self.shape[1:])

    @property
    def portable_nbytes(self) -> int:
        """Bytes of the portable words, which is what a file holds.

        Example:
            >>> pack_weight(torch.ones(2, 33)).portable_nbytes  # two words for each output
            16
        """
        O, I, *kernel = self.shape
        return O * math.prod(kernel) * words_for(I) * 4


def pack_weight(w: Tensor) -> PackedWeight:
    """Packs the signs of a weight matrix for :func:`bgemm`.

    Args:
        w: float32, float16 or bfloat16, shape [N, K], on the device whose kernels will read it.

    Raises:
        TypeError, ValueError: ``w`` is not as above.
        RuntimeError: a gradient would be cut, as by :func:`pack_signs`.

    Example:
        >>> pack_weight(torch.tensor([[0.3, -0.1, 2.0], [-1.0, 0.0, -5.0]])).shape
        (2, 3)
    """
    check_tensor("w", w, SHORT_FLOATS)
    if w.dim() != 2:
        raise ValueError(f"w must be [N, K], got shape {list(w.shape)}")
    check_weight_shape(w.shape, 1)
    refuse_to_cut("pack_weight", w=w)
    return PackedWeight(_ops.pack_weight(w), tuple(w.shape))


def pack_conv_weight(w: Tensor, groups: int = 1) -> PackedWeight:
    """Packs the signs of a convolution's weights for :func:`bconv2d`.

    Args:
        w: float32, float16 or bfloat16, shape [O, I/groups, kh, kw].
        groups: as the convolution will run with; I/groups = 1 and groups = I is depthwise.

    Raises:
        TypeError, ValueError: an argument is not as above, or ``groups`` does not divide O.
        RuntimeError: a gradient would be cut, as by :func:`pack_signs`.

    Example:
        >>> pack_conv_weight(torch.randn(64, 1, 3, 3), groups=64).words().shape  # depthwise
        torch.Size([64, 3, 3, 1])
    """
    check_tensor("w", w, SHORT_FLOATS)
    if w.dim() != 4:
        raise ValueError(f"w must be [O, I/groups, kh, kw], got shape {list(w.shape)}")
    check_weight_shape(w.shape, groups)
    refuse_to_cut("pack_conv_weight", w=w)
    return PackedWeight(_ops.pack_conv_weight(w, groups), tuple(w.shape), groups)


def _packed_bytes(device: torch.device, shape: Sequence[int], groups: int) -> int:
    O, I, *kernel = shape
    kh, kw = kernel or (1, 1)
    kernels = {"cpu": native.library, "cuda": native.cuda}.get(device.type)
    return O * kh * kw * words_for(I) * 4 if kernels is None else kernels.packed_bytes(O, I, kh, kw, groups)


@register_fake("pack_signs")
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32)


@register_fake("pack_outside")
def _(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32)


@register_fake("unpack_signs")
def _(words: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    return words.new_empty((*words.shape[:-1], K), dtype=dtype)


@register_fake("pack_weight")
def _(w: Tensor) -> Tensor:
    return w.new_empty(_packed_bytes(w.device, w.shape, 1), dtype=torch.uint8)


@register_fake("pack_conv_weight")
def _(w: Tensor, groups: int) -> Tensor:
    return w.new_empty(_packed_bytes(w.device, w.shape, groups), dtype=torch.uint8)


@register_fake("pack_weight_words")
def _(words: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    return words.new_empty(_packed_bytes(words.device, shape, groups), dtype=torch.uint8)


@register_fake("unpack_weight_words")
def _(weight: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    O, I, *kernel = shape
    return weight.new_empty((O, *kernel, words_for(I)), dtype=torch.int32)
