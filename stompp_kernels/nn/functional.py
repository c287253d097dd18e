"""Differentiable products of +-1 tensors that run on the packed kernels forward and keep only bits for backward."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.ops import (
    Affine,
    PackedWeight,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    unpack_signs,
)
from stompp_kernels.ops.checks import SHORT_FLOATS
from stompp_kernels.ops.geometry import Geometry

_KEY = "stompp_float_simulation"  # in torch's thread-local store, which autograd's threads inherit
_lock = threading.Lock()
_blocks = 0  # `with float_simulation()` that are open now, in any thread
_someone_simulates = False


@contextlib.contextmanager
def float_simulation() -> Iterator[None]:
    """Lets committed layers compute on +-1 floats inside a ``with`` block: what packed results are compared with.

    It holds for the thread that enters it, and for autograd's threads that run its backward. Compiled code cannot ask
    in which thread it runs: while there is a block in any thread it computes on floats, which gives the same numbers.

    Example:
        >>> layer = sk.nn.BinaryLinear(64, 8, binarize_input=True)
        >>> layer.commit()
        >>> layer.input_activation.commit()
        >>> x = torch.randn(4, 64)
        >>> with sk.float_simulation(), torch.no_grad():
        ...     expected = layer(x)
        >>> with torch.no_grad():
        ...     torch.equal(layer(x), expected)
        True
    """
    global _blocks, _someone_simulates
    before = _this_thread_simulates()
    with _lock:
        _blocks += 1
        _someone_simulates = True
    torch._C._stash_obj_in_tls(_KEY, True)
    try:
        yield
    finally:
        torch._C._stash_obj_in_tls(_KEY, before)
        with _lock:
            _blocks -= 1
            _someone_simulates = _blocks > 0


def _this_thread_simulates() -> bool:
    return torch._C._is_key_in_tls(_KEY) and torch._C._get_obj_in_tls(_KEY)


def packed_path_allowed(x: Tensor) -> bool:
    """Returns whether a product of +-1 values may leave the float path."""
    if _someone_simulates and (torch.compiler.is_compiling() or _this_thread_simulates()):
        return False
    return x.dtype in SHORT_FLOATS


def pad2d(x: Tensor, padding: tuple[int, int], value: int) -> Tensor:
    """Pads NCHW by (height, width) on both sides."""
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(value))


def conv2d(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """torch's convolution with a constant around the input: the float path."""
    stride, padding, dilation, groups, padding_value = geometry
    if padding_value != 0:
        x, padding = pad2d(x, padding, padding_value), (0, 0)
    return F.conv2d(x, w, None, stride, padding, dilation, groups)


def _autocast(x: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the operands as autocast gives them to a float product; result and gradients have the same types then."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):  # autocast does not know the device "meta"
        return x, w
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), None if w is None else w.to(dtype)


def identity_affine(N: int, dtype: torch.dtype, device: torch.device) -> Affine:
    """Makes the epilogue that gives the accumulator itself as a float."""
    scale, bias = (torch.full((N,), value, dtype=torch.float32, device=device) for value in (1.0, 0.0))
    return Affine(scale, bias, None, dtype)


class _PackedConv2d(torch.autograd.Function):
    """conv2d of +-1 x [N, C, H, W] and +-1 w [O, C/groups, kh, kw]; backward is torch's, on unpacked signs.

    Gives the product and x's words. ``packed`` are the bytes of a weight of shape ``shape``, where w is None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor | None,
        packed: Tensor | None,
        shape: tuple[int, ...],
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        x_words = pack_signs(x.permute(0, 2, 3, 1))
        groups = geometry.groups
        weight = pack_conv_weight(w, groups) if packed is None else PackedWeight(packed, shape, groups)
        epilogue = identity_affine(shape[0], x.dtype, x.device)
        y = bconv2d(x_words, weight, *geometry, epilogue).permute(0, 3, 1, 2)
        # As torch's convolution: what comes in contiguous goes out contiguous, so that a view of it stays possible.
        return y.contiguous() if x.is_contiguous() else y, x_words

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, _, ctx.geometry = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], w)
        ctx.channels, ctx.dtype = x.shape[1], x.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_words: Tensor | None) -> tuple[Tensor | None, ...]:
        x_words, w = ctx.saved_tensors
        stride, padding, dilation, groups, padding_value = ctx.geometry
        x = unpack_signs(x_words, ctx.channels, ctx.dtype).permute(0, 3, 1, 2)
        height, width = x.shape[2:]
        conv_padding = padding
        if padding_value != 0:
            x, conv_padding = pad2d(x, padding, padding_value), (0, 0)
        need_x, need_w = ctx.needs_input_grad[:2]
        grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
            grad, x, w, None, stride, conv_padding, dilation, False, (0, 0), groups, (need_x, need_w, False)
        )
        if need_x and padding_value != 0:
            grad_x = grad_x[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
        return grad_x, grad_w, None, None, None


class _PackedLinear(torch.autograd.Function):
    """x @ w.T of +-1 x [..., K] and +-1 w [N, K]; results and ``packed`` as of _PackedConv2d."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor | None, packed: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x_words = pack_signs(x)
        weight = pack_weight(w) if packed is None else PackedWeight(packed, shape)
        return bgemm(x_words, weight, identity_affine(shape[0], x.dtype, x.device)), x_words

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], w)
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_words: Tensor | None) -> tuple[Tensor | None, ...]:
        x_words, w = ctx.saved_tensors
        grad_x = grad @ w if ctx.needs_input_grad[0] else None
        grad_w = None
        if ctx.needs_input_grad[1]:
            x = unpack_signs(x_words, w.shape[1], ctx.dtype)
            grad_w = grad.reshape(-1, w.shape[0]).T @ x.reshape(-1, w.shape[1])
        return grad_x, grad_w, None, None


def _weight_operands(w: Tensor | None, packed: PackedWeight | None) -> tuple[Tensor | None, tuple[int, ...]]:
    """Returns a packed weight's bytes, a tensor of their own for autograd to see, and the weight's shape."""
    if packed is not None:
        return packed.data, packed.shape
    assert w is not None
    return None, tuple(w.shape)


def packed_conv2d(x: Tensor, w: Tensor | None, packed: PackedWeight | None, geometry: Geometry) -> Tensor:
    """What :func:`conv2d` gives on +-1 ``x`` and ``w``, under autocast too, from bits.

    Give ``w`` where a gradient is wanted (it is packed here), or else ``packed`` alone.
    """
    x, w = _autocast(x, w)
    return _PackedConv2d.apply(x, w, *_weight_operands(w, packed), geometry)[0]


def packed_linear(x: Tensor, w: Tensor | None, packed: PackedWeight | None) -> Tensor:
    """Computes ``x @ w.T`` of +-1 tensors from bits; ``w`` and ``packed`` as in :func:`packed_conv2d`."""
    return _PackedLinear.apply(*_autocast(x, w), *_weight_operands(w, packed))[0]
