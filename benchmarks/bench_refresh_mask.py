"""The soft refresh of a mask, on bits, against bool masks in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, in_turn, plain
from stompp_kernels import ops
from stompp_kernels.ops import reference

P, R, SEED, TENSOR = 0.3, 100.0, 5, 7


def formula(mask: Tensor) -> Tensor:
    drawn_again = torch.rand(mask.shape) < 1 / R
    return torch.where(drawn_again, torch.rand(mask.shape) < P, mask)


def case(millions: int) -> Case:
    n = millions << 20

    def build() -> Sides:
        start = ops.pack_signs(torch.randn(n, generator=torch.Generator().manual_seed(0)))
        words, mask = start.clone(), reference.bits_from_words(start, n)

        def ours() -> Tensor:
            return ops.refresh_mask_(words, n, P, R, SEED, TENSOR, 1)

        expected = start.clone()
        reference.refresh_mask_(expected, n, P, R, SEED, TENSOR, 1)  # drawn again by the same numbers, it stays so
        return Sides(ours, plain(formula, mask), lambda: expected, draws=True)

    return Case("refresh_mask_", "refresh_mask", f"{millions}M entries", PLAIN, build, 0, n // 4)


def cases() -> Iterator[Case]:
    for millions in (1, 16):
        yield case(millions)


@in_turn(cases())
def test_refresh_mask(turns, case, side):
    turns(case, side)
