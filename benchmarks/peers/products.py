"""Products that every peer computes: of the same signs, in its own number format."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_bconv2d, bench_bgemm
from benchmarks.case import Call, Case, channels_last, signs
from benchmarks.shapes import CONVS, Conv

MATRICES = ((1, 1024, 1024), (1, 4096, 4096), (128, 768, 768), (128, 3072, 768), (4096, 768, 768), (4096, 1024, 1024))
ZERO_POINT = 64  # of inputs as unsigned bytes: sums of two products with signs fit 16 bits, as AVX2 needs them to


@dataclass(frozen=True)
class Product:
    """Signs in fp32.

    Attributes:
        x: [M, K], or an image [1, C, H, W], channels_last.
        w: [N, K], or [O, C, 3, 3] for stride 1 and zeros around the image.
    """

    x: Tensor
    w: Tensor

    @property
    def is_conv(self) -> bool:
        return self.x.dim() == 4

    @cached_property
    def exact(self) -> Tensor:
        """float64: [M, N] or [1, O, H, W]."""
        x, w = self.x.double(), self.w.double()
        return F.conv2d(x, w, padding=1) if self.is_conv else F.linear(x, w)


@dataclass(frozen=True)
class Candidate:
    """One way in which a peer computes a product; of several, the fastest is its side.

    Attributes:
        how: for the results file.
        run: one call.
        values: of what a call returns, in the order of ``Product.exact``.
        rounded: what the number format of the result makes of exact integers.
    """

    how: str
    run: Call
    values: Callable[[Any], Tensor]
    rounded: Callable[[Tensor], Tensor]

    def verify(self, exact: Tensor) -> None:
        """AssertionError unless the result is right to the bit."""
        values = self.values(self.run()).double()
        right = values.shape == exact.shape and torch.equal(values, self.rounded(exact).double())
        assert right, f"{self.how}: wrong result: not timed"


def as_integers(exact: Tensor) -> Tensor:
    return exact


def as_bytes(exact: Tensor) -> Tensor:
    """8 bits around a zero point in the middle, with scale 1."""
    return exact.clamp(-128, 127)


@dataclass(frozen=True)
class PeerCase:
    """A case of the suite whose others are peers.

    Attributes:
        binarizes: our side reads floats, as each peer does.
    """

    suite: Case
    product: Callable[[], Product]
    binarizes: bool = False


def cases(ops: Container[str]) -> Iterator[PeerCase]:
    """Those of some of "bgemm" and "bconv2d"."""
    for M, N, K in MATRICES if "bgemm" in ops else ():
        yield PeerCase(bench_bgemm.case("bgemm", M, N, K), partial(matrix, M, N, K))
    for (size, channels), out in itertools.product(CONVS, ("bits", "float")) if "bconv2d" in ops else ():
        conv = Conv(size, channels, channels)
        yield PeerCase(bench_bconv2d.case(f"bconv2d {out}", conv, out), partial(image, size, channels))
    for size, channels in CONVS if "bconv2d" in ops else ():
        suite = bench_bconv2d.case("bconv2d from float", Conv(size, channels, channels), "float", from_float=True)
        yield PeerCase(suite, partial(image, size, channels), binarizes=True)


def matrix(M: int, N: int, K: int) -> Product:
    return Product(signs(M, K), signs(N, K, seed=1))


def image(size: int, channels: int) -> Product:
    x, w = signs(1, channels, size, size), signs(channels, channels, 3, 3, seed=1)
    return Product(channels_last(x), channels_last(w))
