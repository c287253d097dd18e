"""`bconv2d` against Larq Compute Engine 0.16: `python -m benchmarks.larq --environment FOLDER`.

The first run makes FOLDER a virtual environment with Larq Compute Engine and the TensorFlow that it converts with, from
PyPI; it wants a Python 3.9 to 3.11 (`--python`). ResNet-18's 3x3 convolutions at batch 1, padded with +1 (Larq writes
bits under no other padding), bits to bits and bits to float, in a process of each side, with the same number of
threads, in turns. First both must give the same integers.

Larq's interpreter times whole models only: a convolution's time is the difference between a model of four and a model
of one, by three. Both of its kernels are timed, the better counts; on x86 they are plain C++.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import signs
from benchmarks.shapes import CONVS
from benchmarks.timing import RESULTS, save
from stompp_kernels import native, ops
from stompp_kernels.measure import sample
from stompp_kernels.table import table

PACKAGES = ("larq-compute-engine==0.16.0", "larq==0.14.0", "tensorflow-cpu==2.15.*")
KERNELS = {"bgemm": False, "indirect bgemm": True}


class Larq:
    """The process with Larq Compute Engine in it."""

    def __init__(self, python: Path) -> None:
        worker = Path(__file__).with_name("larq_worker.py")
        # Isolated (-I): beside the worker lies this file, which has the name of a module that it imports.
        self.process = subprocess.Popen(
            [python, "-I", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"Larq's process ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment(folder: Path, python: str) -> Path:
    """The Python of a virtual environment with Larq Compute Engine, made if it is not there."""
    found = folder / "bin" / "python"
    if not found.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([found, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return found


def operands(size: int, channels: int) -> tuple[Tensor, Tensor]:
    """Signs of an image, NHWC, and of weights [O, I, 3, 3]."""
    return signs(1, size, size, channels), signs(channels, channels, 3, 3, seed=1)


def verify(larq: Larq, size: int, channels: int) -> None:
    """AssertionError unless both sides give the same integers, with either of Larq's kernels."""
    x, w = operands(size, channels)
    ours = ops.bconv2d(ops.pack_signs(x), ops.pack_conv_weight(w), padding=1, padding_value=1)
    with tempfile.TemporaryDirectory() as folder:
        given, result = f"{folder}/operands.npz", f"{folder}/result.npy"
        np.savez(given, x=x.numpy(), w=w.permute(2, 3, 1, 0).numpy())
        for indirect in KERNELS.values():
            larq.ask("verify", operands=given, result=result, indirect=indirect)
            assert np.array_equal(np.load(result), ours.float().numpy()), "wrong result: not timed"


def our_side(size: int, channels: int, out: str) -> Callable[[], Tensor]:
    x, w = operands(size, channels)
    words, packed = ops.pack_signs(x), ops.pack_conv_weight(w)
    zeros = torch.zeros(1, channels, dtype=torch.int32)
    epilogues: dict[str, ops.Affine | ops.Threshold] = {
        "bits": ops.Threshold(zeros, torch.zeros((channels + 31) // 32, dtype=torch.int32)),
        "float": ops.Affine(torch.full((channels,), 0.5), torch.ones(channels)),
    }
    return lambda: ops.bconv2d(words, packed, padding=1, padding_value=1, epilogue=epilogues[out])


def measure(
    larq: Larq, size: int, channels: int, out: str, threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """One row: medians over rounds in which the sides take turns."""
    torch.set_num_threads(threads)
    ours, theirs, version = [], {name: [] for name in KERNELS}, ""
    request = {"size": size, "channels": channels, "out": out, "threads": threads, "seconds": seconds}
    for _ in range(rounds):
        ours += sample({"ours": our_side(size, channels, out)}, seconds)["ours"]
        for name, indirect in KERNELS.items():
            answer = larq.ask("measure", indirect=indirect, **request)
            theirs[name] += answer["ms"]
            version = answer["version"]
    ours_ms, theirs_ms = statistics.median(ours), {name: statistics.median(ms) for name, ms in theirs.items()}
    best = min(theirs_ms.values())
    operations = 2 * 9 * channels**2 * size**2
    row = {"name": f"3x3, {size}x{size}x{channels}, bits to {out}", "threads": threads, "larq_compute_engine": version}
    row |= {"ours_ms": ours_ms, "larq_ms": theirs_ms, "ratio": best / ours_ms}
    return row | {"gops": operations / ours_ms / 1e6, "larq_gops": operations / best / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.larq", description=__doc__)
    parser.add_argument("--environment", type=Path, required=True, help="virtual environment, made if it is not there")
    parser.add_argument("--python", default=sys.executable, help="that makes it (default: this one)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side, case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    larq = Larq(environment(arguments.environment, arguments.python))
    rows = []
    try:
        for size, channels in CONVS:
            verify(larq, size, channels)
        for threads, (size, channels), out in itertools.product(arguments.threads, CONVS, ("bits", "float")):
            rows.append(measure(larq, size, channels, out, threads, arguments.seconds, arguments.rounds))
            print(f"{rows[-1]['name']}, {threads} threads: {rows[-1]['ratio']:.1f}x", flush=True)
    finally:
        larq.close()
    cells = [
        (row["name"], row["threads"], f"{row['gops']:.0f}", f"{row['larq_gops']:.0f}", f"{row['ratio']:.1f}x")
        for row in rows
    ]
    print(table(("convolution", "threads", "GOPS", "Larq's GOPS", "faster"), cells))
    print(save(f"larq_{native.active_implementation()}", "python -m benchmarks.larq", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
