"""The progressive op on a GPU: `python -m benchmarks.gpu_progressive`.

Each pass against a device-to-device copy, counted in the bytes that the op cannot do without: u and u' once, a gate bit
an element, the mask's bits. Forward and backward together against the formula in eager PyTorch and under torch.compile.
Sides alternate call by call, times are those of CUDA events, figures are medians.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import RESULTS, save_each, saved_bytes
from stompp_kernels.bench.turns import compare_on_gpu
from stompp_kernels.ops import draw_state, progressive, progressive_drawn, reference
from stompp_kernels.table import table

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def formula(u: Tensor, frozen: Tensor) -> Tensor:
    """What a PyTorch user writes for the STE-free regime; frozen is bool, of one sample's shape."""
    return torch.where(frozen, torch.where(u < 0, -1.0, 1.0).to(u.dtype), u.clamp(-1, 1))


def both_ways(function: Callable[[Tensor], Tensor], u: Tensor, grad: Tensor) -> Callable[[], None]:
    def call() -> None:
        u.grad = None
        function(u).backward(grad)

    return call


def check(function: Callable[[Tensor], Tensor], u: Tensor, grad: Tensor, words: Tensor) -> None:
    """The values and the gradient of the oracle, on the first samples."""
    part = u.detach()[:2].clone().requires_grad_()
    out = function(part)
    out.backward(grad[:2])
    expected = reference.progressive(part.detach(), words, "none", True)
    expected_grad = reference.progressive_backward(grad[:2], part.detach(), words, "none", True)
    assert torch.equal(out, expected), "wrong result: not timed"
    assert part.grad is not None
    assert torch.equal(part.grad, expected_grad), "wrong gradient: not timed"


@dataclass(frozen=True)
class Inputs:
    """Activations [B, C, H, W] and what else a pass reads; the mask is shared by the batch."""

    u: Tensor
    grad: Tensor
    frozen: Tensor  # bool, of one sample's shape
    words: Tensor
    draw: Tensor

    @staticmethod
    def make(dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool, device: str = "cuda") -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format

        def random() -> Tensor:
            return (
                torch.randn(shape, generator=generator, device=device).to(dtype).contiguous(memory_format=memory_format)
            )

        frozen = torch.rand(shape[1:], generator=generator, device=device) < 0.5
        words = reference.pack_bits(frozen.flatten())
        return Inputs(random(), random(), frozen, words, draw_state(0.5, 1, 2, 3).to(device))


def measure_passes(inputs: Inputs, rounds: int) -> list[dict[str, Any]]:
    """Each pass against a copy of u."""
    ops = torch.ops.stompp_triton
    u, words = inputs.u, inputs.words
    out, gate = ops.progressive_gated(u, words, "none", True)
    copied = torch.empty_like(u)
    timings = compare_on_gpu(
        {
            "copy": lambda: copied.copy_(u),
            "forward": lambda: ops.progressive_gated(u, words, "none", True),
            "backward": lambda: ops.progressive_gate_backward(inputs.grad, gate, out.stride(), True),
            "forward, drawn mask": lambda: ops.progressive_drawn(u, inputs.draw, "none"),
        },
        rounds,
    )
    copy_rate = 2 * u.nbytes / timings["copy"].median / 1e6
    rows = []
    for what, timing in timings.items():
        rate = (2 * u.nbytes + (0 if what == "copy" else gate.nbytes)) / timing.median / 1e6
        rows.append({"name": what, **asdict(timing), "gbytes_per_s": rate, "of_copy": rate / copy_rate})
    return rows


def measure_training(inputs: Inputs, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward through autograd against PyTorch's ways."""
    words, frozen, draw = inputs.words, inputs.frozen, inputs.draw
    u = inputs.u.requires_grad_()
    compiled = torch.compile(formula)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda v: progressive(v, words, "none", True),
        "ours, drawn mask": lambda v: progressive_drawn(v, draw, "none"),
        "eager": lambda v: formula(v, frozen),
        "torch.compile": lambda v: compiled(v, frozen),
    }
    for name in ("ours", "eager", "torch.compile"):
        check(sides[name], u, inputs.grad, words)
    timings = compare_on_gpu({name: both_ways(side, u, inputs.grad) for name, side in sides.items()}, rounds)
    ours = timings["ours"].median
    return [
        {
            "name": f"both ways: {name}",
            **asdict(timing),
            "over_ours": timing.median / ours,
            "kept_of_u": saved_bytes(lambda name=name: sides[name](u)) / u.nbytes,
        }
        for name, timing in timings.items()
    ]


def _figures(row: dict[str, Any]) -> str:
    if "of_copy" in row:
        return f"{row['gbytes_per_s']:.0f} GB/s, {row['of_copy']:.1%} of a copy"
    return f"{row['over_ours']:.2f}x our time, keeps {row['kept_of_u']:.4f} of u's bytes"


def measured(dtypes: Iterable[str], shape: tuple[int, ...], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of each type and layout."""
    for name in dtypes:
        for layout in ("contiguous", "channels_last"):
            inputs = Inputs.make(DTYPES[name], shape, layout == "channels_last")
            for measure in (measure_passes, measure_training):
                for row in measure(inputs, rounds):
                    found = {"group": f"{name} {layout}", "elements": math.prod(shape), **row}
                    print(*_cells(found), sep="  ", flush=True)
                    yield found


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return row["group"], row["name"], f"{row['median']:.3f}", _figures(row)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_progressive", description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 28, help="number of elements, a multiple of 2^20")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="types to measure (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=50, help="calls of each side (default: 50)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU, and torch sees none")
    if arguments.elements < 1 << 20 or arguments.elements % (1 << 20):
        parser.error(f"--elements must be a positive multiple of 2^20, got {arguments.elements}")
    shape = (arguments.elements >> 20, 256, 64, 64)
    found = measured(arguments.dtypes, shape, arguments.rounds)
    rows = save_each("gpu_progressive", "python -m benchmarks.gpu_progressive", found, arguments.output)
    print(table(("tensor", "what", "ms", "figures"), [_cells(row) for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
