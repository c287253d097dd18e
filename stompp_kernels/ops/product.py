"""The way from :func:`stompp_kernels.ops.bgemm` and ``bconv2d`` to the op of an epilogue, with or without autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from stompp_kernels import native
from stompp_kernels.ops import reference
from stompp_kernels.ops.epilogue import Affine, AffineSigns, epilogue_of
from stompp_kernels.ops.forms import AFFINE, AFFINE_SIGNS, FORMS, LINEAR_OPERANDS, SUMS, THRESHOLD, Form
from stompp_kernels.ops.gradients import gradient_wanted, refuse_to_cut
from stompp_kernels.ops.schemas import kernels_for

_LINEAR = len(LINEAR_OPERANDS)


def binary_product(
    name: str, affine_with_gradient: Callable[..., Any], check: Callable[..., None]
) -> Callable[[tuple[Any, ...], Form, tuple[Any, ...]], Any]:
    """Returns what runs a product of PRODUCTS: a function of its own arguments, a form, and the form's operands.

    It takes an epilogue in parts: an object made of them costs as much as a small call, and so do a few calls in
    Python, so that there are none that can be spared.

    Args:
        name: the product's name in ``torch.ops.stompp``.
        affine_with_gradient: the op with an affine epilogue, as an autograd function.
        check: raises in the product's terms what its kernel refuses; takes what the function takes.
    """
    # Looked up once: small products take microseconds.
    sums, affine, affine_signs, threshold = (getattr(torch.ops.stompp, name + form.suffix).default for form in FORMS)

    def run(own: tuple[Any, ...], form: Form, operands: tuple[Any, ...]) -> Any:
        if not native.product_kernels_check(own[0]):
            check(own, form, operands)
        try:
            if form is THRESHOLD:
                return threshold(*own, *operands)
            if form is AFFINE:
                wanted = gradient_wanted(*operands[:_LINEAR], operands[-1])
                return with_gradient(own, operands) if wanted else affine(*own, *operands)
            if form is SUMS:
                return sums(*own)
            *linear, _, gives_floats, rprelu, limits = operands
            wanted = gradient_wanted(*linear, rprelu, limits)
            floats, words = constant_signs(own, operands) if wanted else affine_signs(*own, *operands)
            return (floats, words) if gives_floats else words
        except Exception:
            check(own, form, operands)
            raise

    def with_gradient(own: tuple[Any, ...], operands: tuple[Any, ...]) -> Any:
        epilogue = epilogue_of(AFFINE, operands)
        assert isinstance(epilogue, Affine)
        if epilogue.rprelu is None:
            return affine_with_gradient(*own, *operands)
        linear = replace(epilogue, dtype=torch.float32, rprelu=None)
        y = affine_with_gradient(*own, *linear.operands())
        return reference.apply_rprelu(y, epilogue.rprelu).to(epilogue.dtype)

    def constant_signs(own: tuple[Any, ...], operands: tuple[Any, ...]) -> Any:
        """Returns the floats with their gradients, and their signs, where these may be constants."""
        epilogue = epilogue_of(AFFINE_SIGNS, operands)
        assert isinstance(epilogue, AffineSigns)
        linear = dict(zip(AFFINE.names[:_LINEAR], operands[:_LINEAR], strict=True))
        refuse_to_cut("AffineSigns", **linear, rprelu=epilogue.rprelu, limits=epilogue.limits)
        summed = Affine(**linear, fused=epilogue.fused, rprelu=epilogue.rprelu)
        floats = run(own, AFFINE, summed.operands())
        ops, constants = kernels_for(floats), floats.detach()
        if epilogue.limits is None:
            return floats, ops.pack_signs.default(constants)
        return floats, ops.pack_outside.default(constants, *epilogue.limits.unbind())

    return run
