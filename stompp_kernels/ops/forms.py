"""The four forms of a binary product in ``torch.ops.stompp``: its sums, or one of three epilogues.

An epilogue is operands behind the product's own arguments, in an op with a name of its own. What else depends on the
epilogue follows from this table: the schemas, the oracles (ops/reference), the fake kernels and the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PRODUCTS = {
    "bgemm": "Tensor a_words, Tensor weight, int N, int K",
    "bconv2d": (
        "Tensor x_words, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, "
        "int groups, int padding_value"
    ),
}


class Form:
    """One epilogue as the ops take it.

    Attributes:
        suffix: what the op's name ends in.
        operands: their declarations in the op's schema, in order.
        names: their names, which are the fields of the epilogue's class in ops/epilogue.py.
        returns: the type of the result in the schema.
    """

    def __init__(self, suffix: str, operands: Sequence[str], returns: str = "Tensor") -> None:
        self.suffix, self.operands, self.returns = suffix, tuple(operands), returns
        self.names = tuple(operand.split()[-1].partition("=")[0] for operand in operands)

    def schema(self, own: str) -> str:
        """Returns the schema of a product whose own arguments are declared by ``own``."""
        return f"({', '.join((own, *self.operands))}) -> {self.returns}"

    def filled(self, product: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Returns a product's arguments with the trailing None that the dispatcher leaves out, as they are defaults."""
        count = len(PRODUCTS[product].split(", ")) + len(self.operands)
        return (*arguments, *[None] * (count - len(arguments)))

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Splits an op's arguments into the product's own and the epilogue's operands."""
        own = len(arguments) - len(self.operands)
        return arguments[:own], arguments[own:]


# An affine epilogue without an RPReLU is linear in these, and so has their gradients. They come first.
LINEAR_OPERANDS = (
    "Tensor scale",
    "Tensor bias",
    "Tensor? residual",
    "Tensor? residual_scale",
    "Tensor? residual_bias",
)

SUMS = Form("", ())
_RPRELU = "Tensor? rprelu=None"
AFFINE = Form("_affine", (*LINEAR_OPERANDS, "bool fused", "ScalarType dtype", _RPRELU))
AFFINE_SIGNS = Form(
    "_affine_signs",
    (*LINEAR_OPERANDS, "bool fused", "bool floats", _RPRELU, "Tensor? limits=None"),
    "(Tensor, Tensor)",
)
THRESHOLD = Form("_threshold", ("Tensor thresholds", "Tensor flip_words", "Tensor? residual_words"))
FORMS = (SUMS, AFFINE, AFFINE_SIGNS, THRESHOLD)
