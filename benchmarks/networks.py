r"""Whole networks, packed, against PyTorch: `python -m benchmarks.networks`.

Random weights; ImageNet's shapes, or 128 tokens. Before anything is timed, the packed network's output must equal the
float simulation's, the compiled fp32 network's the eager one's. Then the forms take turns in one process, with the
same number of threads, in turns of two calls of which the second counts; medians. fp32 is channels_last, eager and
compiled (constants folded), the better; int8 is torch's static quantization, for BERT its dynamic one; packed is eager
and compiled, the better.

Beside each stands its bound: the time of the layers that stay in float, alone, and its binary operations at the speed
of a large `bgemm`, both measured in the same run. To see an AVX2 machine's figures on one with AVX-512:

    STOMPP_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        python -m benchmarks.networks
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import RESULTS
from stompp_kernels import native
from stompp_kernels.bench import report
from stompp_kernels.bench.network import measure, sizes
from stompp_kernels.bench.sides import FORMS
from stompp_kernels.bench.subjects import Subject, untrained
from stompp_kernels.files import write_json
from stompp_kernels.measure import machine

NETWORKS = ("resnet18", "resnet50", "bireal18", "bert", "mobilenet_v2")


def show(row: dict[str, Any], full: bool) -> None:
    if "wrong" in row:
        print(f"\n{row['network']}: {row['wrong']}", flush=True)
        return
    print(f"\n{row['network']}, batch {row['batch']}, {row['threads']} threads")
    print(report.latencies(row))
    if "profile" in row:
        print("\n" + (report.profile_table(row) if full else report.by_kind(row)))
    if "bound" in row:
        print("\n" + report.bound_line(row), flush=True)
    if "reason" in row:
        print(f"{row['network']} cannot be converted: {row['reason']}", flush=True)


def measure_all(subject: Subject, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for threads, batch in itertools.product(arguments.threads, arguments.batch):
        a = arguments
        try:
            row = measure(subject, batch, threads, a.forms, not a.no_compile, a.seconds)
        except ValueError as error:  # a wrong result: the other networks are measured nevertheless
            row = {"network": subject.name, "batch": batch, "threads": threads, "ms": {}, "best_ms": {}}
            row |= {"wrong": str(error)}
        rows.append(row)
        show(row, a.profile)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names of sk.models.list()")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, in turn")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="samples a call")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each network, batch and number of threads")
    parser.add_argument("--profile", action="store_true", help="show every layer, not only the kinds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave the sizes of files and processes out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA GPU, and torch sees none")
    rows, bytes_rows = [], []
    for name in arguments.networks:
        subject = untrained(name).to(arguments.device)
        rows += measure_all(subject, arguments)
        if not arguments.no_memory and not on_gpu:
            bytes_rows.append(sizes(subject))
    print("\n" + report.comparison(rows))
    if bytes_rows:
        print("\n" + report.size_table(bytes_rows))
    path = arguments.output / f"networks_{'cuda' if on_gpu else native.active_implementation()}.json"
    command = "python -m benchmarks.networks " + " ".join(sys.argv[1:])
    write_json(path, {"command": command.strip(), "machine": machine(), "rows": rows, "bytes": bytes_rows})
    print(path)
    return int(any("wrong" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
