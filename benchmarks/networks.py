"""Whole networks, packed, against PyTorch: `python -m benchmarks.networks`.

Random weights; ImageNet's shapes, or 128 tokens. Before anything is timed, the packed network's output must equal the
float simulation's, the compiled fp32 network's the eager one's. Then the forms take turns in one process, with the
same number of threads, in turns of two calls of which the second counts; medians. fp32 (channels_last) and packed are
the best of eager, compiled by torch.compile (constants folded) and packaged by AOTInductor, as for a C++ program; int8
is torch's static quantization, for BERT its dynamic one. Where the processor multiplies bfloat16, "fast" is packed with
float_layers="fast".

Beside each stands its bound: the time of the layers that stay in float, alone, and its binary operations at the speed
of a large `bgemm`, both measured in the same run. To see an AVX2 machine's figures on one with AVX-512:

    bash benchmarks/avx2.sh python -m benchmarks.networks
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import RESULTS, about
from stompp_kernels import native
from stompp_kernels.bench import printout
from stompp_kernels.bench.command import Options, measured
from stompp_kernels.bench.network import sizes
from stompp_kernels.bench.sides import FORMS
from stompp_kernels.bench.subjects import Subject, untrained
from stompp_kernels.files import write_json

NETWORKS = (
    *("resnet18", "resnet50", "bireal18", "bert", "mobilenet_v2", "reactnet_a", "bnext_t", "binary_vit"),
    "binary_vit+binary_attention",  # float products of the same clipped values stand beside its products of bits
)


def subject_of(name: str) -> Subject:
    """Makes the network of a name of ``sk.models.list()``, with the model's options of the names behind each "+"."""
    model, *options = name.split("+")
    return replace(untrained(model, options=dict.fromkeys(options, True)), name=name)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row.get("batch"), row.get("threads")


def quietest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keeps one round of each row: a wrong one, or else the one in which the other sides took least time."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        kept = best.get(key(row))
        if kept is None or "wrong" in row or ("wrong" not in kept and _others_ms(row) < _others_ms(kept)):
            best[key(row)] = row
    return list(best.values())


def _others_ms(row: dict[str, Any]) -> float:
    return sum(ms for form, ms in row["best_ms"].items() if form in ("fp32", "int8"))


def replace_in(path: Path, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a results file under a name, with these in the place of those of the same network and setting."""
    old = json.loads(path.read_text())[name] if path.exists() else []
    keys = {key(row) for row in rows}
    return [row for row in old if key(row) not in keys] + rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names of sk.models.list(), and +option")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure, in turn")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="samples per call (default: 1)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="forms to measure (default: those that differ here)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile and AOTInductor")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds to measure each case (default: 20)")
    parser.add_argument(
        "--rounds", type=int, default=1, help="rounds of all cases; the quietest of each counts (default: 1)"
    )
    parser.add_argument("--add", action="store_true", help="keep the results file's other rows")
    parser.add_argument("--profile", action="store_true", help="show every layer, not only the kinds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (default: cpu)")
    parser.add_argument("--no-memory", action="store_true", help="leave the sizes of files and processes out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA GPU, and torch sees none")
    a = arguments
    options = Options(a.batch, a.threads, a.forms, not a.no_compile, a.seconds, a.device)
    rows, bytes_rows = [], []
    for name in arguments.networks:
        subject = subject_of(name).to(arguments.device)
        rounds = (measured(subject, options, a.profile, keep_wrong=True) for _ in range(a.rounds))
        rows += quietest(itertools.chain.from_iterable(rounds))
        if not arguments.no_memory and not on_gpu:
            bytes_rows.append(sizes(subject))
    path = arguments.output / f"networks_{'cuda' if on_gpu else native.active_implementation()}.json"
    if arguments.add:
        rows, bytes_rows = replace_in(path, "rows", rows), replace_in(path, "bytes", bytes_rows)
    print(printout.closing(rows, bytes_rows))
    command = "python -m benchmarks.networks " + " ".join(sys.argv[1:])
    write_json(path, {"command": command.strip(), "machine": about(), "rows": rows, "bytes": bytes_rows})
    print(path)
    return int(any("wrong" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
