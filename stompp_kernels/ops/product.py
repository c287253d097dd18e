"""The way from :func:`stompp_kernels.ops.bgemm` and ``bconv2d`` to the op of an epilogue, with or without autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
            return affine_with_gradient(*arguments) if gradient_wanted(*operands[:_LINEAR]) else affine(*arguments)
        if isinstance(epilogue, Threshold):
            return threshold(*arguments)
        wanted = gradient_wanted(*operands[:_LINEAR])
        floats, words = constant_signs(own, epilogue) if wanted else affine_signs(*arguments)
        return (floats, words) if epilogue.floats else words

    def constant_signs(own: tuple[Any, ...], epilogue: AffineSigns) -> Any:
        """Returns the floats with their gradients, and their signs, where these may be constants."""
        linear = dict(zip(AFFINE.names[:_LINEAR], epilogue.operands()[:_LINEAR], strict=True))
        refuse_to_cut("AffineSigns", **linear)
        floats = run(own, Affine(**linear, fused=epilogue.fused))
        return floats, kernels_for(floats).pack_signs.default(floats.detach())

    return run
