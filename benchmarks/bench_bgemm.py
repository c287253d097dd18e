"""Matrix products of signs, to int32. Weights are packed beforehand, as a user packs them once.

Where activations come as floats, packing them is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, in_turn, plain, signs
from benchmarks.shapes import BERT
from stompp_kernels import ops


def formula(a: Tensor, w: Tensor) -> Tensor:
    return a @ w.T


def case(group: str, M: int, N: int, K: int, from_float: bool = False) -> Case:
    def build() -> Sides:
        a, w = signs(M, K), signs(N, K, seed=1)
        words, packed = ops.pack_signs(a), ops.pack_weight(w)

        def ours() -> Tensor:
            return ops.bgemm(ops.pack_signs(a) if from_float else words, packed)

        return Sides(ours, plain(formula, a, w), lambda: formula(a, w))

    read = M * K * 4 if from_float else M * K // 8
    return Case("bgemm", group, f"{M} x {N} x {K}", PLAIN, build, 2 * M * N * K, read + N * K // 8 + 4 * M * N)


def cases() -> Iterator[Case]:
    sizes = (256, 1024, 4096)
    for M, N, K in itertools.product(sizes, sizes, sizes[1:]):
        yield case("bgemm", M, N, K)
    for M, (N, K) in itertools.product((128, 4096), BERT):
        yield case("bgemm", M, N, K)
    for M in (1, 2, 4, 8):
        yield case("bgemm few rows", M, 4096, 4096)
    for N, K in BERT:
        yield case("bgemm from float", 128, N, K, from_float=True)


@in_turn(cases())
def test_bgemm(turns, case, side):
    turns(case, side)
