"""What fake kernels refuse: the arguments that the compiled kernels refuse, so that a trace fails as a call does.

Sizes that are symbols while a graph is traced are let pass: to compare one would fix it, and the kernel looks again.
What only data can show, a packed weight's header for example, is not seen here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.ops.checks import (
    FLOATS,
    SURROGATES,
    check_batched_words,
    check_binary_weight_conv2d,
    check_binary_weight_linear,
    check_choice,
    check_conv2d_input,
    check_draw,
    check_float_conv2d,
    check_gate,
    check_gradient,
    check_limits,
    check_max_pool2d,
    check_per_output,
    check_progressive,
    check_refresh,
    check_shape,
    check_short_floats,
    check_tensor,
    check_weight_shape,
    check_words,
)
from stompp_kernels.ops.epilogue import Affine, AffineSigns, Epilogue, Threshold, epilogue_of
from stompp_kernels.ops.forms import FORMS, Form
from stompp_kernels.ops.geometry import Geometry
from stompp_kernels.ops.reference import words_for


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the fake kernel of ``torch.ops.stompp.<name>``, behind the checks of its compiled kernel.

    It raises what a compiled kernel does, RuntimeError, with the op's name in front.
    """
    check = _CHECKS[name]

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def fake(*arguments: Any) -> Any:
            with _errors_of(name):
                check(*arguments)
            return kernel(*arguments)

        torch.library.register_fake(f"stompp::{name}")(fake)
        return kernel

    return register


def register_product_fakes(product: str) -> None:
    """Registers the fake kernels of a binary product: that of its sums and those with an epilogue."""
    sums_shape = _SUMS_SHAPES[product]
    for form in FORMS:
        torch.library.register_fake(f"stompp::{product}{form.suffix}")(_product_fake(product, sums_shape, form))


def _product_fake(product: str, sums_shape: Callable[..., tuple[int, ...]], form: Form) -> Callable[..., Any]:
    def fake(*arguments: Any) -> Any:
        own, operands = form.split(form.filled(product, arguments))
        epilogue = _epilogue(form, operands)
        with _errors_of(product + form.suffix):
            shape = sums_shape(*own)
            if epilogue is not None:
                epilogue.check(shape)
        return _empty_result(epilogue, own[0], shape)

    return fake


def _epilogue(form: Form, operands: Sequence[Any]) -> Epilogue:
    """Returns the epilogue whose operands an op was given."""
    epilogue = epilogue_of(form, operands)
    if isinstance(epilogue, (Affine, AffineSigns)) and epilogue.residual is None:
        return replace(epilogue, residual_scale=None, residual_bias=None)  # no kernel looks at them then
    return epilogue


def _empty_result(epilogue: Epilogue, words: Tensor, shape: tuple[int, ...]) -> Any:
    """Returns what a product does whose sums have this shape; ``words`` are its int32 input."""
    if epilogue is None:
        return words.new_empty(shape)
    if isinstance(epilogue, Affine):
        return words.new_empty(shape, dtype=epilogue.dtype)
    bits = words.new_empty((*shape[:-1], words_for(shape[-1])))
    if isinstance(epilogue, Threshold):
        return bits
    return words.new_empty(shape if epilogue.floats else (0,), dtype=torch.float32), bits


@contextlib.contextmanager
def _errors_of(op: str) -> Iterator[None]:
    """Turns the errors of a check into those of the compiled kernels."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"{op}: {error}") from None


def _check_bytes(weight: Tensor) -> None:
    check_tensor("weight", weight, (torch.uint8,))
    if weight.dim() != 1:
        raise ValueError(f"weight must be one-dimensional packed bytes, got shape {list(weight.shape)}")


def _check_pair(name: str, values: Sequence[int]) -> None:
    if len(values) != 2:
        raise ValueError(f"{name} must have two values, got {list(values)}")


def _check_pairs(geometry: Geometry) -> None:
    for name in ("stride", "padding", "dilation"):
        _check_pair(name, getattr(geometry, name))


def _check_conv_shape(shape: Sequence[int], groups: int) -> None:
    if len(shape) != 4:
        raise ValueError(f"weight_shape must be [O, I/groups, kh, kw], got {list(shape)}")
    check_weight_shape(shape, groups)


def _bgemm(a_words: Tensor, weight: Tensor, N: int, K: int) -> tuple[int, ...]:
    """Checks the product's own arguments and returns the shape of its sums."""
    _check_bytes(weight)
    check_weight_shape((N, K), 1)
    check_words("a_words", a_words, K)
    return (*a_words.shape[:-1], N)


def _bconv2d(x_words: Tensor, weight: Tensor, shape: Sequence[int], *numbers: Any) -> tuple[int, ...]:
    """Checks the product's own arguments and returns the shape of its sums."""
    geometry = Geometry(*numbers)
    _check_bytes(weight)
    _check_conv_shape(shape, geometry.groups)
    _check_pairs(geometry)
    check_choice("padding_value", geometry.padding_value, (0, 1, -1))
    check_tensor("x_words", x_words, (torch.int32,))
    if x_words.dim() != 4:
        raise ValueError(f"x_words must be [N, H, W, C_words], got shape {list(x_words.shape)}")
    check_words("x_words", x_words, shape[1] * geometry.groups)
    pixels = check_conv2d_input(x_words.shape[1:3], shape[2:], geometry)
    return (x_words.shape[0], *pixels, shape[0])


_SUMS_SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {"bgemm": _bgemm, "bconv2d": _bconv2d}


def _unpack_signs(words: Tensor, K: int, dtype: torch.dtype) -> None:
    check_choice("dtype", dtype, FLOATS)
    check_words("words", words, K)


def _pack_weight(w: Tensor) -> None:
    check_short_floats(w)
    if w.dim() != 2:
        raise ValueError(f"w must be [N, K], got shape {list(w.shape)}")
    check_weight_shape(w.shape, 1)


def _pack_conv_weight(w: Tensor, groups: int) -> None:
    if w.dim() != 4:
        raise ValueError(f"w must be [O, I/groups, kh, kw], got shape {list(w.shape)}")
    check_short_floats(w)
    check_weight_shape(w.shape, groups)


def _pack_weight_words(words: Tensor, shape: Sequence[int], groups: int) -> None:
    check_weight_shape(shape, groups)
    check_tensor("words", words, (torch.int32,))
    O, I, *kernel = shape
    check_shape("words", words, (O, *kernel, words_for(I)))


def _unpack_weight_words(weight: Tensor, shape: Sequence[int], groups: int) -> None:
    check_weight_shape(shape, groups)
    _check_bytes(weight)


def _max_pool2d_signs(
    x_words: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> None:
    _check_pair("kernel", kernel)
    _check_pairs(Geometry(stride, padding, dilation))
    check_max_pool2d(x_words, kernel, stride, padding, dilation, ceil_mode)


def _linear_binary_weight(x: Tensor, weight: Tensor, N: int, K: int, scale: Tensor, bias: Tensor | None) -> None:
    _check_bytes(weight)
    check_weight_shape((N, K), 1)
    check_binary_weight_linear(x, (N, K), scale, bias)


def _conv2d_binary_weight(x: Tensor, weight: Tensor, shape: Sequence[int], *arguments: Any) -> None:
    *numbers, scale, bias = arguments
    geometry = Geometry(*numbers)
    _check_bytes(weight)
    _check_conv_shape(shape, geometry.groups)
    _check_pairs(geometry)
    check_binary_weight_conv2d(x, shape, geometry, scale, bias)


def _float_conv2d(x: Tensor, weight: Tensor, shape: Sequence[int], *numbers: Any) -> None:
    _check_conv_shape(shape, 1)
    _check_pairs(Geometry(*numbers))
    check_float_conv2d(x, weight, shape, Geometry(*numbers))


def _conv2d_float(*arguments: Any) -> None:
    *operands, scale, bias, _ = arguments
    _float_conv2d(*operands)
    if (scale is None) != (bias is None):
        raise ValueError("scale and bias must be given both or neither, got one of them")
    if scale is not None:
        check_per_output(operands[2][0], scale=scale, bias=bias)


def _conv2d_float_signs(*arguments: Any) -> None:
    *operands, low, high = arguments
    _float_conv2d(*operands)
    check_per_output(operands[2][0], low=low, high=high)


def _progressive_gated(u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool) -> None:
    check_choice("surrogate", surrogate, SURROGATES[:3])
    check_progressive(u, mask_words, surrogate, batch_shared)


def _progressive_drawn(u: Tensor, draw: Tensor, surrogate: str) -> None:
    check_progressive(u, None, surrogate, False)
    check_draw(draw)


def _progressive_backward(
    grad: Tensor, u: Tensor, mask_words: Tensor | None, surrogate: str, batch_shared: bool
) -> None:
    check_progressive(u, mask_words, surrogate, batch_shared)
    check_gradient(grad, u)


def _progressive_gate_backward(grad: Tensor, gate: Tensor, strides: Sequence[int], batch_shared: bool) -> None:
    check_tensor("grad", grad, FLOATS)
    if len(strides) != grad.dim():
        raise ValueError(f"strides must be as many as grad has dimensions, got {len(strides)}")
    check_gate(grad, gate, strides, batch_shared)


def _refresh_mask(mask_words: Tensor, *arguments: Any) -> None:
    check_refresh(mask_words.flatten() if mask_words.is_contiguous() else mask_words, *arguments)


_CHECKS: dict[str, Callable[..., Any]] = {
    "pack_signs": check_short_floats,
    "pack_outside": check_limits,
    "unpack_signs": _unpack_signs,
    "pack_weight": _pack_weight,
    "pack_conv_weight": _pack_conv_weight,
    "pack_weight_words": _pack_weight_words,
    "unpack_weight_words": _unpack_weight_words,
    "batched_bgemm": check_batched_words,
    "max_pool2d_signs": _max_pool2d_signs,
    "pack_binary_weight_words": _pack_weight_words,
    "unpack_binary_weight_words": _unpack_weight_words,
    "linear_binary_weight": _linear_binary_weight,
    "conv2d_binary_weight": _conv2d_binary_weight,
    "conv2d_float": _conv2d_float,
    "conv2d_float_signs": _conv2d_float_signs,
    "progressive": check_progressive,
    "progressive_gated": _progressive_gated,
    "progressive_drawn": _progressive_drawn,
    "progressive_backward": _progressive_backward,
    "progressive_gate_backward": _progressive_gate_backward,
    "refresh_mask_": _refresh_mask,
}
