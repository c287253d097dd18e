"""Block sizes and warps: pure functions of sizes; `python -m benchmarks.gpu_blocks` measures others.

A size that is a symbol of a graph counts as large: to compare it would fix it, and a graph is for any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_VECTOR_BYTES = 16  # the widest load of a thread
_WARP = 32
_MAX_GRID_Y = 65535  # CUDA's limit on a grid's second and third dimension


@dataclass(frozen=True)
class Launch:
    """The tile of a program, in bytes of bits (or words, or pixels), and its warps."""

    tile: int
    warps: int


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def _at_most(size: int, bound: int) -> bool:
    return isinstance(size, int) and size <= bound


def elementwise(n: int, itemsize: int) -> Launch:
    """Returns the launch for rows of n elements: a thread has one 16-byte load of floats, short rows get few warps."""
    elements_of_a_warp = _WARP * _VECTOR_BYTES // itemsize
    warps = 1
    while warps < 4 and not _at_most(n, warps * elements_of_a_warp):
        warps *= 2
    return Launch(warps * elements_of_a_warp // 8, warps)


def random_words() -> Launch:
    """Returns the launch for words of a mask: four words of eight Philox calls give each thread of a warp one."""
    return Launch(tile=16, warps=4)


def bit_gather() -> Launch:
    """Returns the launch for bytes of a mask that is put into another order."""
    return Launch(tile=128, warps=4)


def planes(itemsize: int) -> Launch:
    """Returns the launch for pixels of 32 channels: a warp's loads run along the pixels."""
    return Launch(tile=_WARP * _VECTOR_BYTES // itemsize // 4, warps=4)


def pooled_words() -> Launch:
    """Returns the launch for words of pooled pixels: a thread has one."""
    return Launch(tile=128, warps=4)


@dataclass(frozen=True)
class ProductLaunch:
    """The rows and outputs of a program's tile, and its warps."""

    rows: int
    outputs: int
    warps: int


def product(rows: int, outputs: int) -> ProductLaunch:
    """Returns the launch for rows of floats by the binary weights of a group of outputs; tl.dot wants 16 of each."""
    if _at_most(rows, 16):
        return ProductLaunch(16, 32 if outputs <= 32 else 64, 4)
    return ProductLaunch(64, 32 if outputs <= 32 else 64, 4)


def grid(tiles: int, rows: int) -> tuple[int, int, int]:
    """Returns a grid of tiles first; rows beyond the limit of its second dimension go on in the third."""
    return tiles, torch.sym_min(rows, _MAX_GRID_Y), ceil_div(rows, _MAX_GRID_Y)
