"""Max pooling of signs, on bits, against max pooling of +-1 in floats."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, channels_last, in_turn, plain, signs
from stompp_kernels import ops
from stompp_kernels.ops import reference


def case(batch: int, size: int, C: int, kernel: int, padding: int) -> Case:
    def formula(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel, 2, padding)

    def build() -> Sides:
        x = channels_last(signs(batch, C, size, size))
        words = ops.pack_signs(x.permute(0, 2, 3, 1))
        expected = reference.pack_signs(formula(x).permute(0, 2, 3, 1))
        return Sides(lambda: ops.max_pool2d_signs(words, kernel, 2, padding), plain(formula, x), lambda: expected)

    name = f"{kernel}x{kernel}, {size}x{size}x{C}, stride 2, batch {batch}"
    nbytes = batch * size**2 * C // 8 * 5 // 4  # bits in, and a quarter of them out
    return Case("max_pool2d_signs", "max_pool2d_signs", name, PLAIN, build, 0, nbytes)


def cases() -> Iterator[Case]:
    yield case(1, 112, 64, kernel=3, padding=1)
    yield case(16, 56, 128, kernel=2, padding=0)


@in_turn(cases())
def test_pool(turns, case, side):
    turns(case, side)
