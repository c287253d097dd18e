r"""Binary weights with float activations against PyTorch's float32: `python -m benchmarks.binary_weight`.

Sides alternate as in benchmarks/cpu.py, whose docstring says how to hold both to AVX2. Weights are packed beforehand;
torch's convolutions are channels_last. Activations are small integers, so that results can be compared bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cpu import CONVS, DEPTHWISE, Conv, equal, signs
from benchmarks.timing import RESULTS, Case, quietest, run, save, scaling, summary
from stompp_kernels import native, ops

MATRICES = ((3072, 768), (4096, 4096))  # (N, K)
ROWS = (1, 2, 8, 128)


def integers(*shape: int) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).float()


def linear_cases(full: bool) -> Iterator[Case]:
    for (N, K), M in itertools.product(MATRICES if full else MATRICES[:1], ROWS):
        yield linear_case(M, N, K)


def linear_case(M: int, N: int, K: int) -> Case:
    x, w, scale, bias = integers(M, K), signs(N, K, seed=1), torch.full((N,), 0.5), integers(N)
    packed, scaled = ops.pack_binary_weight(w), w * 0.5

    def ours() -> Tensor:
        return ops.linear_binary_weight(x, packed, scale, bias)

    def fp32() -> Tensor:
        return F.linear(x, scaled, bias)

    group = "linear, few rows" if M <= 8 else "linear"
    return Case(group, f"{M} x {N} x {K}", ours, {"fp32": fp32}, equal(ours, fp32), 2 * M * N * K)


def conv_cases() -> Iterator[Case]:
    for size, channels in CONVS:
        yield conv_case("conv 3x3", Conv(size, channels, channels))
    for size, channels in CONVS:
        yield conv_case("conv 1x1", Conv(size, channels, channels, kernel=1))
    for conv in (Conv(56, 64, 128, stride=2), Conv(28, 128, 128, groups=4)):
        yield conv_case("conv other", conv)
    for conv in DEPTHWISE:
        yield conv_case("conv depthwise", conv)


def conv_case(group: str, conv: Conv) -> Case:
    stride, padding, groups, O = conv.stride, conv.kernel // 2, conv.groups, conv.O
    x = integers(conv.batch, conv.C, conv.size, conv.size).contiguous(memory_format=torch.channels_last)
    w = signs(O, conv.C // groups, conv.kernel, conv.kernel, seed=1)
    packed, scale, bias = ops.pack_binary_weight(w, groups), torch.full((O,), 0.5), integers(O)
    scaled = (w * 0.5).contiguous(memory_format=torch.channels_last)

    def ours() -> Tensor:
        return ops.conv2d_binary_weight(x, packed, scale, bias, stride, padding, 1, groups)

    def fp32() -> Tensor:
        return F.conv2d(x, scaled, bias, stride, padding, 1, groups)

    pixels = conv.batch * (-(-conv.size // stride)) ** 2
    operations = 2 * O * (conv.C // groups) * conv.kernel**2 * pixels
    return Case(group, conv.name, ours, {"fp32": fp32}, equal(ours, fp32), operations)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary_weight", description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, one after the other"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases; see timing.quietest")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    rows = []
    for _, threads in itertools.product(range(arguments.rounds), arguments.threads):
        for cases in (linear_cases(not arguments.quick), conv_cases()):
            rows += run(cases, threads, arguments.seconds)
    rows = quietest(rows)
    print("\n" + summary(rows))
    print("\n" + scaling(rows))
    command = "python -m benchmarks.binary_weight " + " ".join(sys.argv[1:])
    print(save(f"binary_weight_{native.active_implementation()}", command.strip(), rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
