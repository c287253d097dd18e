"""Products of two activations, as of queries and keys: their packing is counted, for no operand is there beforehand."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, in_turn, plain, signs
from stompp_kernels import ops


def formula(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.mT


def case(heads: int, M: int, N: int, K: int) -> Case:
    def build() -> Sides:
        a, b = signs(heads, M, K), signs(heads, N, K, seed=1)

        def ours() -> Tensor:
            return ops.batched_bgemm(ops.pack_signs(a), ops.pack_signs(b), K)

        return Sides(ours, plain(formula, a, b), lambda: formula(a, b))

    nbytes = 4 * heads * (M * K + N * K + M * N)
    name = f"{heads} heads, {M} x {N} x {K}"
    return Case("batched_bgemm", "batched_bgemm from float", name, PLAIN, build, 2 * heads * M * N * K, nbytes)


def cases() -> Iterator[Case]:
    yield case(1, 3136, 49, 64)  # BinaryViT's first stage, queries by keys and attention by values
    yield case(1, 3136, 64, 49)
    yield case(4, 196, 196, 64)
    yield case(12, 512, 512, 64)  # BERT-base


@in_turn(cases())
def test_batched_bgemm(turns, case, side):
    turns(case, side)
