"""Binary weights with float activations, against PyTorch's float32.

Weights are packed beforehand; torch's convolutions are channels_last. Activations are small integers, so that results
can be compared bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, channels_last, in_turn, plain, signs
from benchmarks.shapes import CONVS, DEPTHWISE, Conv
from stompp_kernels import ops

MATRICES = ((3072, 768), (4096, 4096))  # (N, K)
ROWS = (1, 2, 8, 128)


def integers(*shape: int) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).float()


def linear_case(M: int, N: int, K: int) -> Case:
    def build() -> Sides:
        x, w, scale, bias = integers(M, K), signs(N, K, seed=1), torch.full((N,), 0.5), integers(N)
        packed, scaled = ops.pack_binary_weight(w), w * 0.5

        def formula(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
            return F.linear(x, w, bias)

        def ours() -> Tensor:
            return ops.linear_binary_weight(x, packed, scale, bias)

        return Sides(ours, plain(formula, x, scaled, bias), lambda: formula(x, scaled, bias))

    group = "binary weight, linear, few rows" if M <= 8 else "binary weight, linear"
    nbytes = 4 * M * K + N * K // 8 + 4 * M * N
    name = f"{M} x {N} x {K}"
    return Case("linear_binary_weight", group, name, PLAIN, build, 2 * M * N * K, nbytes, "signed sum")


def conv_case(group: str, conv: Conv) -> Case:
    stride, padding, groups, O = conv.stride, conv.padding, conv.groups, conv.O

    def build() -> Sides:
        x = channels_last(integers(conv.batch, conv.C, conv.size, conv.size))
        w = signs(O, conv.C // groups, conv.kernel, conv.kernel, seed=1)
        packed, scale, bias = ops.pack_binary_weight(w, groups), torch.full((O,), 0.5), integers(O)

        def formula(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(x, w, bias, stride, padding, 1, groups)

        def ours() -> Tensor:
            return ops.conv2d_binary_weight(x, packed, scale, bias, stride, padding, 1, groups)

        operands = x, channels_last(w * 0.5), bias
        return Sides(ours, plain(formula, *operands), lambda: formula(*operands))

    nbytes = 4 * conv.inputs + conv.weights // 8 + 4 * conv.pixels * O
    name = f"binary weight, {group}"
    return Case("conv2d_binary_weight", name, conv.name, PLAIN, build, conv.operations, nbytes, "signed sum")


def cases() -> Iterator[Case]:
    for (N, K), M in itertools.product(MATRICES, ROWS):
        yield linear_case(M, N, K)
    for size, channels in CONVS:
        yield conv_case("conv 3x3", Conv(size, channels, channels))
    for size, channels in CONVS:
        yield conv_case("conv 1x1", Conv(size, channels, channels, kernel=1))
    for conv in (Conv(56, 64, 128, stride=2), Conv(28, 128, 128, groups=4)):
        yield conv_case("conv other", conv)
    for conv in DEPTHWISE:
        yield conv_case("conv depthwise", conv)


@in_turn(cases())
def test_binary_weight(turns, case, side):
    turns(case, side)
