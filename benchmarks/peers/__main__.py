"""Our kernels against other libraries: `python -m benchmarks.peers` (pip install '.[peers]').

In one process, in turns of two calls of which the second counts, with the same number of threads: ours, torch fp32,
bf16 and int8, ONNX Runtime fp32 and int8, OpenVINO's XNOR convolutions from float, alone and one after another, and of
whole networks OpenVINO fp32 and bf16, and ours with fast float layers. Every side's result is right to the bit before
it is timed; bytes that a peer writes are compared with the exact integers as bytes hold them. Where a peer has several
ways to compute something, the fastest is timed; a row's "how" names it. Whole networks must come within the bounds of
stompp_kernels/bench/sides.py.

Larq Compute Engine is measured with `--larq FOLDER`, a virtual environment of its own that the first run makes from
PyPI, with a Python 3.9 to 3.11 (`--larq-python`). See larq.py.

A peer that is not there is listed in the results file under "missing", with the reason. To hold torch and ours to AVX2
on a machine with AVX-512, see benchmarks/avx2.sh; ONNX Runtime and OpenVINO cannot be held to it, which the file says
then.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.peers import chain, larq, onnx_runtime, openvino, torch_sides
from benchmarks.peers.fastest import measure
from benchmarks.peers.products import cases
from benchmarks.timing import RESULTS, save, summary
from stompp_kernels import native

GROUPS = ("bgemm", "bconv2d", "chains", "networks", "larq")
NETWORKS = ("resnet18", "resnet50", "bert")
SLOWER = 10  # times as many seconds for a network as for a product
NOT_HELD = (
    "chooses its instructions by the processor: what holds the other sides to an instruction set does not hold it"
)


class Peers:
    """What a run finds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.missing: dict[str, str] = dict(torch_sides.missing())
        self.versions: dict[str, str] = {}
        reason = onnx_runtime.missing()
        self.with_onnx_runtime = not reason
        if reason:
            self.missing["onnxruntime"] = reason
        else:
            self.versions["onnxruntime"] = onnx_runtime.version()
        if reason := openvino.missing():
            self.missing["openvino"] = reason
        else:
            self.versions["openvino"] = openvino.version()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratios"].items())
        ours = row["ms"]["ours"]["median"]
        print(f"{row['group']}: {row['name']}, {row['threads']} threads: {ours:.3f} ms, {ratios}", flush=True)

    def refuse(self, what: str, error: Exception) -> None:
        self.wrong.append(f"{what}: {error}")
        print(self.wrong[-1], file=sys.stderr, flush=True)

    def products(self, threads: int) -> None:
        for case in cases(self.arguments.groups):
            try:
                self.add(measure(case, threads, self.arguments.seconds, self.with_onnx_runtime))
            except AssertionError as error:
                self.refuse(case.suite.key, error)

    def chains(self, threads: int) -> None:
        if openvino.missing():
            return
        try:
            for row in chain.measure_all(threads, self.arguments.seconds):
                self.add(row)
        except AssertionError as error:
            self.refuse("chain of bconv2d", error)

    def networks(self) -> None:
        from benchmarks.peers import network

        a = self.arguments
        for name, threads, batch in itertools.product(a.networks, a.threads, a.batch):
            # Each in a process of its own: where the processor has AMX, OpenVINO 2026.4 leaves a thread in which it ran
            # an fp32 and a bf16 network in a state in which the end of a compiler's process ends it too.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                row = process.submit(
                    network.measure_untrained, name, threads, SLOWER * a.seconds, self.with_onnx_runtime, batch
                )
            try:
                self.add(row.result())
            except (ValueError, BrokenProcessPool) as error:
                self.refuse(name, error)

    def larq(self) -> None:
        a = self.arguments
        if a.larq is None:
            self.missing[larq.PEER] = "--larq FOLDER makes or names its environment"
            return
        try:
            python = larq.environment(a.larq, a.larq_python)
        except RuntimeError as error:
            self.missing[larq.PEER] = str(error)
            return
        try:
            for row in larq.measure_all(python, a.threads, a.seconds, a.rounds):
                self.versions[larq.PEER] = row.pop("version")
                self.add(row)
        except (AssertionError, RuntimeError) as error:
            self.refuse(larq.PEER, error)

    def run(self) -> None:
        for threads in self.arguments.threads:
            self.products(threads)
            if "chains" in self.arguments.groups:
                self.chains(threads)
        if "networks" in self.arguments.groups:
            self.networks()
        if "larq" in self.arguments.groups:
            self.larq()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure (default: 1 2)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds for each case; ten times as many for a network"
    )
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to run (default: all)"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names of sk.models.list()")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="samples per call of a network (default: 1)")
    parser.add_argument("--larq", type=Path, metavar="FOLDER", help="virtual environment for Larq, made if missing")
    parser.add_argument("--larq-python", default=sys.executable, help="Python that makes it (default: this one)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of Larq's process and ours, at least 2 (default: 5)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; there must be at least 2")
    peers = Peers(arguments)
    peers.run()
    if peers.rows:
        print("\n" + summary(peers.rows))
    for name, reason in peers.missing.items():
        print(f"missing: {name}: {reason}")
    held = "ATEN_CPU_CAPABILITY" in os.environ
    notes = {name: NOT_HELD for name in ("onnxruntime", "openvino") if held and name in peers.versions}
    more = {"missing": peers.missing, "wrong": peers.wrong, "versions": peers.versions, "notes": notes}
    name = f"peers_{native.active_implementation()}"
    print(save(name, "python -m benchmarks.peers", peers.rows, arguments.output, **more))
    return int(bool(peers.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
