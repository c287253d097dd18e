"""The progressive op: u' = M*sign(u) + (1 - M)*clip(u, -1, 1), sign(0) = sign(-0.0) = +1.

After Smith & Islam, "Layerwise Progressive Freezing: A Training Scaffold for Depth-Scalable Binary Networks"
(arXiv 2606.27759). The surrogates: `identity` is the straight-through estimator, `clip` its clipped form (Hubara et
al. 2016), `approx_sign` the piecewise quadratic of Bi-Real Net (Liu et al. 2018), `none` the STE-free regime.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stompp_kernels.ops.checks import FLOATS, SURROGATES, check_choice, check_shape, check_tensor
from stompp_kernels.ops.reference import result_format, words_for

_ops = torch.ops.stompp


def progressive(u: Tensor, mask_words: Tensor | None, surrogate: str = "none", batch_shared: bool = False) -> Tensor:
    """Commits the entries of ``u`` that the mask marks to their hard signs and clips the others.

    Gradient, given g: ``g * (|u| <= 1)`` for soft entries; for frozen ones by ``surrogate``: "none" 0, "identity" g,
    "clip" ``g * (|u| <= 1)``, "approx_sign" ``g * (2 - 2|u|)`` inside [-1, 1] and 0 outside.

    Args:
        u: float32, float16, bfloat16 or float64, any shape.
        mask_words: int32 [ceil(n/32)], bit i for entry i in row-major order, 1 = frozen; None freezes every entry.
        surrogate: as above.
        batch_shared: the mask has the shape of ``u[0]`` and serves every element of the batch; else that of ``u``.

    Returns:
        u', of u's shape and dtype; a dense u (channels_last, say) keeps its strides, else it is contiguous.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_tensor("u", u, FLOATS)
    check_choice("surrogate", surrogate, SURROGATES)
    if batch_shared and u.dim() == 0:
        raise ValueError("u must have a batch dimension when the mask is shared by the batch, got a scalar")
    if mask_words is not None:
        check_tensor("mask_words", mask_words, (torch.int32,))
        check_shape("mask_words", mask_words, (words_for((u.shape[1:] if batch_shared else u.shape).numel()),))
    # One bit an element is all that backward needs, but for approx_sign, which scales by u.
    if surrogate != "approx_sign" and u.requires_grad and torch.is_grad_enabled():
        return _ops.progressive_gated.default(u, mask_words, surrogate, batch_shared)[0]
    return _ops.progressive.default(u, mask_words, surrogate, batch_shared)


@torch.library.register_fake("stompp::progressive")
def _(u, mask_words, surrogate, batch_shared):
    return torch.empty_like(u, memory_format=result_format(u, batch_shared))


@torch.library.register_fake("stompp::progressive_gated")
def _(u, mask_words, surrogate, batch_shared):
    rows = u.shape[0] if batch_shared else 1
    n = (u.shape[1:] if batch_shared else u.shape).numel()
    gate = u.new_empty((rows, words_for(n)), dtype=torch.int32)
    return torch.empty_like(u, memory_format=result_format(u, batch_shared)), gate


@torch.library.register_fake("stompp::progressive_backward")
def _(grad, u, mask_words, surrogate, batch_shared):
    return torch.empty_like(u, memory_format=result_format(u, batch_shared))


@torch.library.register_fake("stompp::progressive_gate_backward")
def _(grad, gate, strides, batch_shared):
    return grad.new_empty_strided(grad.shape, strides)


def _save(ctx, inputs, output):
    u, mask_words, surrogate, batch_shared = inputs
    ctx.save_for_backward(u, mask_words)
    ctx.surrogate, ctx.batch_shared = surrogate, batch_shared


def _backward(ctx, grad):
    u, mask_words = ctx.saved_tensors
    return _ops.progressive_backward(grad, u, mask_words, ctx.surrogate, ctx.batch_shared), None, None, None


def _save_gate(ctx, inputs, output):
    out, gate = output
    ctx.save_for_backward(gate)
    ctx.strides, ctx.batch_shared = out.stride(), inputs[3]


def _gate_backward(ctx, grad, grad_of_gate):
    (gate,) = ctx.saved_tensors
    return _ops.progressive_gate_backward(grad, gate, ctx.strides, ctx.batch_shared), None, None, None


def _no_second_backward(ctx, grad):
    raise RuntimeError("progressive can be differentiated once; its gradient has no gradient of its own")


torch.library.register_autograd("stompp::progressive", _backward, setup_context=_save)
torch.library.register_autograd("stompp::progressive_gated", _gate_backward, setup_context=_save_gate)
for _name in ("progressive_backward", "progressive_gate_backward"):
    torch.library.register_autograd(f"stompp::{_name}", _no_second_backward)
