"""The way from :func:`stompp_kernels.ops.bgemm` and ``bconv2d`` to the op of an epilogue, with or without autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from stompp_kernels.ops import reference
from stompp_kernels.ops.epilogue import Affine, AffineSigns, Epilogue, Threshold
from stompp_kernels.ops.forms import AFFINE, FORMS, LINEAR_OPERANDS
from stompp_kernels.ops.gradients import gradient_wanted, refuse_to_cut
from stompp_kernels.ops.schemas import kernels_for

_LINEAR = len(LINEAR_OPERANDS)


def binary_product(name: str, affine_with_gradient: Callable[..., Any]) -> Callable[[tuple[Any, ...], Epilogue], Any]:
    """Returns what runs a product of PRODUCTS: a function of the product's own arguments and an epilogue.

    Args:
        name: the product's name in ``torch.ops.stompp``.
        affine_with_gradient: the op with an affine epilogue, as an autograd function.
    """
    # Looked up once: small products take microseconds.
    sums, affine, affine_signs, threshold = (getattr(torch.ops.stompp, name + form.suffix).default for form in FORMS)

    def run(own: tuple[Any, ...], epilogue: Epilogue) -> Any:
        if epilogue is None:
            return sums(*own)
        operands = epilogue.operands()
        arguments = own + operands
        if isinstance(epilogue, Affine):
            wanted = gradient_wanted(*operands[:_LINEAR], epilogue.rprelu)
            return with_gradient(own, epilogue) if wanted else affine(*arguments)
        if isinstance(epilogue, Threshold):
            return threshold(*arguments)
        wanted = gradient_wanted(*operands[:_LINEAR], epilogue.rprelu, epilogue.limits)
        floats, words = constant_signs(own, epilogue) if wanted else affine_signs(*arguments)
        return (floats, words) if epilogue.floats else words

    def with_gradient(own: tuple[Any, ...], epilogue: Affine) -> Any:
        if epilogue.rprelu is None:
            return affine_with_gradient(*own, *epilogue.operands())
        linear = replace(epilogue, dtype=torch.float32, rprelu=None)
        y = affine_with_gradient(*own, *linear.operands())
        return reference.apply_rprelu(y, epilogue.rprelu).to(epilogue.dtype)

    def constant_signs(own: tuple[Any, ...], epilogue: AffineSigns) -> Any:
        """Returns the floats with their gradients, and their signs, where these may be constants."""
        linear = dict(zip(AFFINE.names[:_LINEAR], epilogue.operands()[:_LINEAR], strict=True))
        refuse_to_cut("AffineSigns", **linear, rprelu=epilogue.rprelu, limits=epilogue.limits)
        floats = run(own, Affine(**linear, fused=epilogue.fused, rprelu=epilogue.rprelu))
        ops, constants = kernels_for(floats), floats.detach()
        if epilogue.limits is None:
            return floats, ops.pack_signs.default(constants)
        return floats, ops.pack_outside.default(constants, *epilogue.limits.unbind())

    return run
