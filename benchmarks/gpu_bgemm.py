"""Binary products on a GPU against cuBLAS and cuDNN: `python -m benchmarks.gpu_bgemm`.

The peers are those that torch calls. Matrix products to int32: cuBLAS bf16, and int8 (torch._int_mm). 3x3 convolutions
of ResNets, bits to bits through a threshold: cuDNN bf16 in channels_last, its fastest algorithm, without BatchNorm and
activation. Packing of signs: a copy.
Packing has rows of its own: a network packs its first input once. Results are checked before they are timed.

A side's calls are captured in a CUDA graph, so that starting them from Python counts for nobody. Where one call is
short, a graph holds several, on weights that together exceed the caches. Sides alternate graph by graph, times are
those of CUDA events, figures are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import RESULTS, save_each
from stompp_kernels.bench.turns import compare_on_gpu
from stompp_kernels.ops import Threshold, bconv2d, bgemm, pack_conv_weight, pack_signs, pack_weight, reference
from stompp_kernels.table import table

CACHE_BYTES = 256 << 20  # more than any GPU's caches
FEW_ROWS = (1, 2, 4, 8, 16)  # more are bound by arithmetic, and torch._int_mm takes them
CUBES = (8192, 4096, 2048, 1024)
BERT = ((768, 768), (3072, 768), (768, 3072))  # N, K
# C, O, height and width, stride.
RESNET18 = (
    (64, 64, 56, 1),
    (64, 128, 56, 2),
    (128, 128, 28, 1),
    (128, 256, 28, 2),
    (256, 256, 14, 1),
    (256, 512, 14, 2),
    (512, 512, 7, 1),
)
RESNET50 = ((128, 128, 56, 2), (256, 256, 28, 2), (512, 512, 14, 2))  # and those of RESNET18 with stride 1

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One row: our side against others; each is a list of calls, on different weights where there are several.

    Attributes:
        check: raises AssertionError unless our side's result is right.
        operations: multiplications and additions of one call.
        bytes: that one call must read and write.
        copy: one of the others, a copy of this many bytes read and written; 0 without.
    """

    group: str
    name: str
    ours: Sequence[Call]
    others: dict[str, Sequence[Call]]
    check: Call
    operations: int = 0
    bytes: int = 0
    copy: int = 0


def random_signs(shape: Sequence[int], device: str) -> Tensor:
    return torch.randint(0, 2, tuple(shape), device=device).mul_(2).sub_(1).to(torch.bfloat16)


def gemm_case(group: str, M: int, N: int, K: int, device: str = "cuda", cache: int = CACHE_BYTES) -> Case:
    """int32 [M, N]; few rows run on as many weights as the caches do not hold."""
    x, w = random_signs((M, K), device), random_signs((N, K), device)
    a, weight = pack_signs(x), pack_weight(w)
    x8, w8 = x.to(torch.int8), w.to(torch.int8)
    cold = M in FEW_ROWS
    weights = [weight, *(pack_weight(w) for _ in range(cache // weight.nbytes if cold else 0))]
    floats = [w, *(w.clone() for _ in range(cache // w.nbytes if cold else 0))]
    others: dict[str, Sequence[Call]] = {"bf16": [lambda v=v: x @ v.T for v in floats]}
    if not cold:
        others["int8"] = [lambda: torch._int_mm(x8, w8.T)]
    copy = 0
    if cold:
        copied = torch.empty_like(weight.data)
        others["copy"] = [lambda v=v: copied.copy_(v.data) for v in weights]
        copy = 2 * weight.nbytes

    def check() -> None:
        # Exact: integers below 2^24.
        assert torch.equal(bgemm(a, weight), (x.float() @ w.float().T).to(torch.int32)), "wrong result: not timed"

    return Case(
        group,
        f"{M} x {N} x {K}",
        [lambda v=v: bgemm(a, v) for v in weights],
        others,
        check,
        2 * M * N * K,
        a.nbytes + weight.nbytes + 4 * M * N,
        copy,
    )


def conv_case(group: str, C: int, O: int, size: int, stride: int, batch: int = 256, device: str = "cuda") -> Case:
    """3x3, padding 1; bits to bits through a threshold per channel."""
    x = random_signs((batch, C, size, size), device).contiguous(memory_format=torch.channels_last)
    w = random_signs((O, C, 3, 3), device).contiguous(memory_format=torch.channels_last)
    thresholds = torch.randint(-30, 31, (1, O), device=device, dtype=torch.int32)
    epilogue = Threshold(thresholds, pack_signs(torch.randn(O, device=device)))
    words, weight = pack_signs(x.permute(0, 2, 3, 1)), pack_conv_weight(w)

    def ours(input_words: Tensor = words) -> Tensor:
        return bconv2d(input_words, weight, stride, 1, epilogue=epilogue)

    def check() -> None:
        few = min(batch, 4)
        acc = F.conv2d(x[:few].float(), w.float(), None, stride, 1).round().to(torch.int32).permute(0, 2, 3, 1)
        expected = reference.threshold(acc, epilogue.thresholds, epilogue.flip_words, None)
        assert torch.equal(ours(words[:few]), expected), "wrong result: not timed"
        assert torch.equal(ours()[:few], expected), "wrong result: not timed"

    out = (size + 1) // stride if stride == 2 else size
    return Case(
        group,
        f"{C} -> {O}, {size} x {size}, stride {stride}",
        [ours],
        {"bf16": [lambda: F.conv2d(x, w, None, stride, 1)]},
        check,
        2 * batch * out * out * O * C * 9,
        words.nbytes + weight.nbytes + 4 * batch * out * out * ((O + 31) // 32),
    )


def packing_case(name: str, shape: Sequence[int], nhwc: bool, device: str = "cuda") -> Case:
    """Signs of bf16; the bytes are those read and the bits written."""
    x = torch.randn(tuple(shape), device=device, dtype=torch.bfloat16)
    if nhwc:
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    copied = torch.empty_like(x)

    def check() -> None:
        assert torch.equal(pack_signs(x[:4]), reference.pack_signs(x[:4])), "wrong result: not timed"

    read = x.nbytes
    others: dict[str, Sequence[Call]] = {"copy": [lambda: copied.copy_(x)]}
    return Case("packing", name, [lambda: pack_signs(x)], others, check, 0, read + read // 16, 2 * read)


def in_graph(calls: Sequence[Call]) -> Call:
    """Runs the calls one after the other, from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Checks, then times a case; milliseconds are those of one call."""
    case.check()
    sides = {"ours": case.ours, **case.others}
    timings = compare_on_gpu({name: in_graph(calls) for name, calls in sides.items()}, rounds)
    ms = {
        name: {key: value / len(sides[name]) if key != "calls" else value for key, value in asdict(timing).items()}
        for name, timing in timings.items()
    }
    ours = ms["ours"]["median"]
    row = {
        "group": case.group,
        "name": case.name,
        "pops": case.operations / ours / 1e12,
        "gbytes_per_s": case.bytes / ours / 1e6,
        "ratios": {name: ms[name]["median"] / ours for name in case.others if name != "copy"},
        "ms": ms,
    }
    if case.copy:
        row["of_copy"] = (case.bytes / ours) / (case.copy / ms["copy"]["median"])
    return row


def cases(device: str = "cuda") -> Iterator[Case]:
    for size in CUBES:
        yield gemm_case("cubes", size, size, size, device)
    for N, K in BERT:
        yield gemm_case("BERT, 4096 rows", 4096, N, K, device)
    for M in FEW_ROWS:
        yield gemm_case("few rows", M, 8192, 8192, device)
    for layer in RESNET18:
        yield conv_case("ResNet-18, 3x3", *layer, device=device)
    for layer in RESNET50:
        yield conv_case("ResNet-50, 3x3", *layer, device=device)
    yield packing_case("256 x 56 x 56 x 64, NHWC", (256, 64, 56, 56), True, device)
    yield packing_case("8192 x 8192", (8192, 8192), False, device)


def stack(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """ResNet-18's layers together, the packing of their first input once on our side."""
    layers = [row for row in rows if row["group"] == "ResNet-18, 3x3"]
    packing = [row for row in rows if row["group"] == "packing" and row["name"].endswith("NHWC")]
    if not layers or not packing:
        return None
    ours = sum(row["ms"]["ours"]["median"] for row in [*layers, packing[0]])
    others = sum(row["ms"]["bf16"]["median"] for row in layers)
    ms = {"ours": {"median": ours}, "bf16": {"median": others}}
    return {"group": "ResNet-18, 3x3", "name": "all, and packing", "ratios": {"bf16": others / ours}, "ms": ms}


def measured(cases: Iterable[Case], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the row of each case, and at last ResNet-18's layers together."""
    rows = []
    for case in cases:
        rows.append(measure(case, rounds))
        print(*_cells(rows[-1]), sep="  ", flush=True)
        yield rows[-1]
    if (together := stack(rows)) is not None:
        yield together


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratios"].items())
    return (
        row["group"],
        row["name"],
        f"{row['ms']['ours']['median']:.4f}",
        f"{row['pops']:.3f}" if row.get("pops") else "",
        ratios,
        f"{row['of_copy']:.0%}" if "of_copy" in row else "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bgemm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="calls of each side (default: 50)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU, and torch sees none")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # its fastest algorithm
    rows = save_each(
        "gpu_bgemm", "python -m benchmarks.gpu_bgemm", measured(cases(), arguments.rounds), arguments.output
    )
    print(table(("group", "M x N x K, or layer", "ms", "Pop/s", "against", "of a copy"), [_cells(row) for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
