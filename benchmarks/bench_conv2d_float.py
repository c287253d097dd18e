"""The float convolutions of packed networks, against PyTorch's: first layers, and projections that read bits.

torch's are channels_last and read floats. Inputs and weights are small integers, so that results can be compared bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, channels_last, in_turn, plain, signs
from benchmarks.shapes import Conv
from stompp_kernels import ops

FIRST = (Conv(224, 3, 64, 7, 2), Conv(224, 3, 32, 3, 2), Conv(32, 3, 64))
PROJECTIONS = (Conv(56, 64, 128, 1, 2), Conv(14, 256, 512, 1, 2), Conv(56, 256, 512, 1, 2), Conv(14, 1024, 2048, 1, 2))

# Signs of the 7x7 layer need fewer products than its sums: for 7 rows of output, F(7, 4) takes 10 of each of the 2
# lines that a stride of 2 tells apart, instead of 7 of each row of the filter.
OF_BITS = 10 * 2 / (7 * 7)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def weights(conv: Conv) -> Tensor:
    return integers(conv.O, conv.C, conv.kernel, conv.kernel, seed=1)


def first_case(conv: Conv, to_bits: bool) -> Case:
    """A first layer that writes floats, or the signs of its BatchNorm."""

    def build() -> Sides:
        x, w = channels_last(integers(conv.batch, conv.C, conv.size, conv.size)), weights(conv)
        packed, dense = ops.pack_float_weight(w), channels_last(w)
        low, high = torch.full((conv.O,), 3.0), torch.full((conv.O,), torch.inf)
        limits = ops.Limits(low, high) if to_bits else None

        def formula(x: Tensor, w: Tensor) -> Tensor:
            y = F.conv2d(x, w, None, conv.stride, conv.padding)
            return y < 3.0 if to_bits else y

        def expected() -> Tensor:
            y = F.conv2d(x, dense, None, conv.stride, conv.padding)
            return ops.pack_outside(y.permute(0, 2, 3, 1), low, high) if to_bits else y

        def ours() -> Tensor:
            return ops.conv2d_float(x, packed, conv.stride, conv.padding, 1, limits)

        return Sides(ours, plain(formula, x, dense), expected)

    out_bytes = conv.pixels * conv.O // 8 if to_bits else 4 * conv.pixels * conv.O
    nbytes = 4 * (conv.inputs + conv.weights) + out_bytes
    group = "float conv, first layer" + (" to bits" if to_bits else "")
    operations = round(conv.operations * OF_BITS) if to_bits else conv.operations
    return Case("conv2d_float", group, conv.name, PLAIN, build, operations, nbytes, "fp32")


def projection_case(conv: Conv) -> Case:
    """A shortcut's 1x1 convolution with a stride, of signs."""

    def build() -> Sides:
        x, w = channels_last(signs(conv.batch, conv.C, conv.size, conv.size)), weights(conv)
        words = ops.pack_signs(x.permute(0, 2, 3, 1))
        packed, dense = ops.pack_float_weight(w), channels_last(w)

        def formula(x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, None, conv.stride)

        def ours() -> Tensor:
            return ops.conv2d_float(words, packed, conv.stride)

        return Sides(ours, plain(formula, x, dense), lambda: formula(x, dense))

    nbytes = conv.pixels * conv.C // 8 + 4 * (conv.weights + conv.pixels * conv.O)
    group = "float conv, projection of bits"
    return Case("conv2d_float", group, conv.name, PLAIN, build, conv.operations, nbytes, "fp32")


def cases() -> Iterator[Case]:
    for conv in FIRST:
        yield first_case(conv, to_bits=False)
    yield first_case(FIRST[0], to_bits=True)
    for conv in PROJECTIONS:
        yield projection_case(conv)


@in_turn(cases())
def test_conv2d_float(turns, case, side):
    turns(case, side)
