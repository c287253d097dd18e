"""The progressive op: u' = M*sign(u) + (1 - M)*clip(u, -1, 1), sign(0) = sign(-0.0) = +1.

After Smith & Islam, "Layerwise Progressive Freezing: A Training Scaffold for Depth-Scalable Binary Networks"
(arXiv 2606.27759). The surrogates: `identity` is the straight-through estimator, `clip` its clipped form (Hubara et
al. 2016), `approx_sign` the piecewise quadratic of Bi-Real Net (Liu et al. 2018), `none` the STE-free regime.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stompp_kernels.ops.checks import check_draw, check_progressive
from stompp_kernels.ops.fake_kernels import register_fake
from stompp_kernels.ops.gradients import needs_function, transforms_are_active
from stompp_kernels.ops.reference import mask_rows, result_format, rows_in_memory, words_for
from stompp_kernels.ops.schemas import kernels_for, triton


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

    Example:
        >>> u = torch.tensor([-0.3, 0.2, 1.7, -2.0])
        >>> first_two = torch.tensor([0b0011], dtype=torch.int32)
        >>> progressive(u, first_two)
        tensor([-1.,  1.,  1., -1.])
        >>> progressive(0.5 * u, first_two)
        tensor([-1.0000,  1.0000,  0.8500, -1.0000])
    """
    check_progressive(u, mask_words, surrogate, batch_shared)
    ops = kernels_for(u)
    if needs_function():
        return _FUNCTIONS[ops.name, "progressive"].apply(u, mask_words, surrogate, batch_shared)
    # One bit an element is all that backward needs, but for approx_sign, which scales by u.
    if surrogate != "approx_sign" and u.requires_grad and torch.is_grad_enabled():
        return ops.progressive_gated.default(u, mask_words, surrogate, batch_shared)[0]
    return ops.progressive.default(u, mask_words, surrogate, batch_shared)


def progressive_drawn(u: Tensor, draw: Tensor, surrogate: str = "none") -> Tensor:
    """Does what :func:`progressive` does, with a mask of u's shape that is drawn inside the op and stored nowhere.

    Entry i is frozen where random word i of the stream is below p * 2^32. Entries are counted in the order in which the
    elements of the result lie in memory, so contiguous and channels_last inputs draw different masks.

    Args:
        u: float32, float16, bfloat16 or float64, any shape.
        draw: int64 [4] on u's device, see :func:`stompp_kernels.ops.draw_state`.
        surrogate: as in :func:`progressive`.

    Returns:
        u', as :func:`progressive` does.

    Raises:
        TypeError, ValueError: an argument is not as above.
        RuntimeError: a value of ``draw`` is out of range, on the CPU.

    Example:
        >>> u = torch.tensor([-0.3, 0.2, 1.7, -2.0])
        >>> progressive_drawn(u, draw_state(p=1.0, seed=0, tensor_id=0, step=0))  # every entry is frozen
        tensor([-1.,  1.,  1., -1.])
        >>> progressive_drawn(u, draw_state(p=0.0, seed=0, tensor_id=0, step=0))  # none is
        tensor([-0.3000,  0.2000,  1.0000, -1.0000])
    """
    check_progressive(u, None, surrogate, False)
    check_draw(draw)
    if needs_function():
        # In vmap the results of a batch are stacked; the mask's order is theirs if each is contiguous.
        return _FUNCTIONS[kernels_for(u).name, "progressive_drawn"].apply(u.contiguous(), draw, surrogate)[0]
    return kernels_for(u).progressive_drawn.default(u, draw, surrogate)[0]


@register_fake("progressive")
def _(u, mask_words, surrogate, batch_shared):
    return torch.empty_like(u, memory_format=result_format(u, batch_shared))


@register_fake("progressive_gated")
def _(u, mask_words, surrogate, batch_shared):
    return torch.empty_like(u, memory_format=result_format(u, batch_shared)), _gate_fake(u, batch_shared)


@register_fake("progressive_drawn")
def _(u, draw, surrogate):
    return torch.empty_like(u, memory_format=result_format(u, False)), _gate_fake(u, False)


@register_fake("progressive_backward")
def _(grad, u, mask_words, surrogate, batch_shared):
    return torch.empty_like(u, memory_format=result_format(u, batch_shared))


@register_fake("progressive_gate_backward")
def _(grad, gate, strides, batch_shared):
    return grad.new_empty_strided(grad.shape, strides)


def _gate_fake(u, batch_shared):
    rows, n = mask_rows(u, batch_shared)
    return u.new_empty((rows, words_for(n)), dtype=torch.int32)


def _no_second_backward(ctx, grad):
    raise RuntimeError("progressive can be differentiated once; its gradient has no gradient of its own")


def _nothing_to_save(ctx, inputs, output):
    pass


# The ops as autograd Functions, {(namespace, op): Function}: torch.func's transforms take these, and do not take what
# torch makes of register_autograd.
_FUNCTIONS: dict[tuple[str, str], Any] = {}


def _function(namespace: str, name: str, backward: Any, setup_context: Any) -> type[torch.autograd.Function]:
    op = getattr(getattr(torch.ops, namespace), name).default
    members = {"forward": lambda *arguments: op(*arguments), "setup_context": setup_context, "backward": backward}
    methods = {key: staticmethod(member) for key, member in members.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **methods})


def register_autograd(namespace: str) -> None:
    """Gives the progressive ops of ``torch.ops.<namespace>`` their gradients, which are ops of the same namespace."""
    ops = getattr(torch.ops, namespace)

    def call(name: str, *arguments: Any) -> Any:
        if transforms_are_active():
            return _FUNCTIONS[namespace, name].apply(*arguments)
        return getattr(ops, name)(*arguments)

    def save(ctx, inputs, output):
        u, mask_words, surrogate, batch_shared = inputs
        ctx.save_for_backward(u, mask_words)
        ctx.surrogate, ctx.batch_shared = surrogate, batch_shared

    def backward(ctx, grad):
        u, mask_words = ctx.saved_tensors
        return call("progressive_backward", grad, u, mask_words, ctx.surrogate, ctx.batch_shared), None, None, None

    def save_gate(ctx, inputs, output):
        out, gate = output
        ctx.save_for_backward(gate)
        ctx.strides, ctx.batch_shared = out.stride(), inputs[3]

    def gate_backward(ctx, grad, grad_of_gate):
        (gate,) = ctx.saved_tensors
        return call("progressive_gate_backward", grad, gate, ctx.strides, ctx.batch_shared), None, None, None

    def save_drawn(ctx, inputs, output):
        (u, _, ctx.surrogate), (out, bits) = inputs, output
        ctx.save_for_backward(bits, u if ctx.surrogate == "approx_sign" else None)
        ctx.strides = out.stride()

    def drawn_backward(ctx, grad, grad_of_bits):
        bits, u = ctx.saved_tensors
        if u is None:
            return call("progressive_gate_backward", grad, bits, ctx.strides, False), None, None
        # The bits are the mask's, in the order of the memory of u': as one row that is their order too.
        grad_row, u_row = (_row_in_memory(t, ctx.strides) for t in (grad, u))
        result = call("progressive_backward", grad_row, u_row, bits[0], ctx.surrogate, False)
        return _from_row(result, u, ctx.strides), None, None

    for name, backward_of, setup in (
        ("progressive", backward, save),
        ("progressive_gated", gate_backward, save_gate),
        ("progressive_drawn", drawn_backward, save_drawn),
        ("progressive_backward", _no_second_backward, _nothing_to_save),
        ("progressive_gate_backward", _no_second_backward, _nothing_to_save),
    ):
        _FUNCTIONS[namespace, name] = _function(namespace, name, backward_of, setup)
        torch.library.register_autograd(f"{namespace}::{name}", backward_of, setup_context=setup)


def _row_in_memory(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Returns the elements of t as one row, in the order that dense strides give them."""
    if transforms_are_active():  # the strides are then those of a contiguous tensor
        return t.flatten()
    return rows_in_memory(t.new_empty_strided(t.shape, strides).copy_(t), False)[0]


def _from_row(row: Tensor, like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Undoes :func:`_row_in_memory`: the row in like's shape."""
    return row.reshape(like.shape) if transforms_are_active() else row.as_strided(like.shape, strides)


register_autograd("stompp")
if triton is not None:
    register_autograd("stompp_triton")
