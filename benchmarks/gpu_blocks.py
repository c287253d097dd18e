"""Measures other block sizes than launch.py's on this machine's GPU: `python -m benchmarks.gpu_blocks`.

Prints, for each kernel and type, the time of launch.py's choice and of the three best others. Put what is better into
launch.py: the choice itself stays a pure function of sizes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch

from stompp_kernels.bench.turns import compare_on_gpu
from stompp_kernels.ops.reference import words_for
from stompp_kernels.ops.triton import kernels, launch
from stompp_kernels.ops.triton.launch import Launch
from stompp_kernels.table import table

TILES = (32, 64, 128, 256, 512, 1024)
WARPS = (1, 2, 4, 8)


def _forward(n: int, dtype: torch.dtype, mask_kind: int) -> Callable[[Launch], None]:
    u = torch.randn(n, device="cuda").to(dtype)
    mask = torch.randint(0, 256, (4 * words_for(n),), dtype=torch.uint8, device="cuda")
    draw = torch.tensor([1, 2, 3, 1 << 31], device="cuda")
    out, gate = torch.empty_like(u), torch.empty_like(mask)

    def run(size: Launch) -> None:
        kernels.forward[launch.grid(launch.ceil_div(n, 8 * size.tile), 1)](
            u,
            mask,
            draw,
            out,
            gate,
            1,
            n,
            len(mask),
            SURROGATE=kernels.NONE.value,
            MASK=mask_kind,
            GATE=True,
            BYTES=size.tile,
            num_warps=size.warps,
        )

    return run


def _gate_backward(n: int, dtype: torch.dtype) -> Callable[[Launch], None]:
    grad = torch.randn(n, device="cuda").to(dtype)
    gate = torch.randint(0, 256, (4 * words_for(n),), dtype=torch.uint8, device="cuda")
    out = torch.empty_like(grad)

    def run(size: Launch) -> None:
        kernels.gate_backward[launch.grid(launch.ceil_div(n, 8 * size.tile), 1)](
            grad, gate, out, 1, n, len(gate), BYTES=size.tile, num_warps=size.warps
        )

    return run


def _refresh(n: int) -> Callable[[Launch], None]:
    words = torch.zeros(words_for(n), dtype=torch.int32, device="cuda")

    def run(size: Launch) -> None:
        kernels.refresh[(launch.ceil_div(len(words), size.tile),)](
            words, n, 1 << 20, 1 << 24, 1, 2, 3, WORDS=size.tile, num_warps=size.warps
        )

    return run


def _compare(name: str, run: Callable[[Launch], None], chosen: Launch, rounds: int) -> list[tuple[Any, ...]]:
    sizes = {chosen, *(Launch(tile, warps) for tile, warps in itertools.product(TILES, WARPS))}
    timings = compare_on_gpu({str(size): lambda size=size: run(size) for size in sizes}, rounds)  # type: ignore[misc]
    ours = timings[str(chosen)].median
    best = sorted(sizes, key=lambda size: timings[str(size)].median)[:3]
    rows = []
    for size in dict.fromkeys([chosen, *best]):
        ms = timings[str(size)].median
        rows.append(
            (name, size.tile, size.warps, f"{ms:.4f}", f"{ms / ours:.3f}", "launch.py" if size == chosen else "")
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_blocks", description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 28, help="elements of each tensor (default: 2**28)")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each block size (default: 15)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU, and torch sees none")
    n, rows = arguments.elements, []
    for dtype in (torch.bfloat16, torch.float32):
        chosen = launch.elementwise(n, dtype.itemsize)
        for what, run in (
            ("forward", _forward(n, dtype, kernels.STORED.value)),
            ("forward, drawn", _forward(n, dtype, kernels.DRAWN.value)),
            ("gate_backward", _gate_backward(n, dtype)),
        ):
            rows += _compare(f"{what} {str(dtype).removeprefix('torch.')}", run, chosen, arguments.rounds)
    rows += _compare("refresh", _refresh(n), launch.random_words(), arguments.rounds)
    print(table(("kernel", "tile", "warps", "ms", "of the choice", ""), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
