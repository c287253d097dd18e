"""Packing and unpacking of signs: bound by memory, so that a copy of the same floats stands beside."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.case import PLAIN, Case, Sides, channels_last, in_turn, plain
from stompp_kernels import ops
from stompp_kernels.ops import reference

SHAPE = (16, 128, 64, 64)
ELEMENTS = 16 * 128 * 64 * 64
INPUTS = {
    "fp32 channels_last": (torch.float32, True),
    "bf16 channels_last": (torch.bfloat16, True),
    "fp32 NCHW": (torch.float32, False),
}


def bits(nhwc: Tensor) -> Tensor:
    """As many bytes as bits: PyTorch has no packed form."""
    return nhwc < 0


def pack_case(name: str, dtype: torch.dtype, last: bool) -> Case:
    def build() -> Sides:
        x = torch.randn(SHAPE).to(dtype)
        x = channels_last(x) if last else x
        copied, nhwc = torch.empty_like(x), x.permute(0, 2, 3, 1)
        others = {**plain(bits, nhwc), "copy": lambda: copied.copy_(x)}
        return Sides(lambda: ops.pack_signs(nhwc), others, lambda: reference.pack_signs(nhwc))

    read = ELEMENTS * dtype.itemsize
    return Case("pack_signs", "pack_signs", name, (*PLAIN, "copy"), build, 0, read + ELEMENTS // 8)


def unpack_case() -> Case:
    def build() -> Sides:
        x = torch.randn(SHAPE).permute(0, 2, 3, 1)
        words, mask = ops.pack_signs(x), x < 0
        others = plain(lambda bits: torch.where(bits, -1.0, 1.0), mask)
        expected = reference.unpack_signs(words, SHAPE[1], torch.float32)
        return Sides(lambda: ops.unpack_signs(words, SHAPE[1]), others, lambda: expected)

    return Case("unpack_signs", "unpack_signs", "fp32", PLAIN, build, 0, ELEMENTS // 8 + 4 * ELEMENTS)


def outside_case() -> Case:
    """BatchNorm, sign and packing in one pass; our own two passes stand beside."""

    def build() -> Sides:
        x = channels_last(torch.randn(SHAPE))
        norm = nn.BatchNorm2d(SHAPE[1]).eval()
        low, high = torch.zeros(SHAPE[1]), torch.full((SHAPE[1],), torch.inf)  # of a norm that was not trained

        def normed_bits(x: Tensor) -> Tensor:
            with torch.no_grad():
                return norm(x) < 0

        def two_passes() -> Tensor:
            with torch.no_grad():
                return ops.pack_signs(norm(x).permute(0, 2, 3, 1))

        others = {**plain(normed_bits, x), "two passes": two_passes}
        return Sides(lambda: ops.pack_outside(x.permute(0, 2, 3, 1), low, high), others, two_passes)

    others = (*PLAIN, "two passes")
    nbytes = 4 * ELEMENTS + ELEMENTS // 8
    return Case("pack_outside", "BatchNorm + sign + pack", "fp32 channels_last", others, build, 0, nbytes)


def cases() -> Iterator[Case]:
    for name, (dtype, last) in INPUTS.items():
        yield pack_case(name, dtype, last)
    yield unpack_case()
    yield outside_case()


@in_turn(cases())
def test_pack(turns, case, side):
    turns(case, side)
