"""Larq Compute Engine, in a process and an environment of its own: it needs a TensorFlow and a Python that we do not.

ResNet's 3x3 convolutions at batch 1, padded with +1 (Larq writes bits under no other padding), bits to bits and bits to
float. First both sides must give the same integers.

Its interpreter times whole models only: a convolution's time is the difference between a model of four and a model of
one, by three. Both of its kernels are timed, the better counts; on x86 they are plain C++. The processes take turns, a
figure is the median of the rounds' medians.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Case, Sides, signs
from benchmarks.shapes import CONVS, Conv
from benchmarks.timing import row_of
from stompp_kernels import ops
from stompp_kernels.bench.machine import clock_ms
from stompp_kernels.bench.turns import sample, using_threads
from stompp_kernels.ops import reference

PEER = "larq compute engine"
PACKAGES = ("larq-compute-engine==0.16.0", "larq==0.14.0", "tensorflow-cpu==2.15.*")
KERNELS = {"bgemm": False, "indirect bgemm": True}
INSTALLED = "import importlib.util as u, sys; sys.exit(u.find_spec('larq_compute_engine') is None)"


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

    def __enter__(self) -> Larq:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a process that has ended reads no last request
            self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """RuntimeError if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            answer = ""
        else:
            answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"Larq's process ended with status {self.process.wait()}")
        return json.loads(answer)


def environment(folder: Path, python: str) -> Path:
    """The Python of a virtual environment with Larq Compute Engine.

    Args:
        folder: of the environment; made, and what misses in it installed from PyPI.
        python: that makes it, 3.9 to 3.11.

    Raises:
        RuntimeError: it cannot be made; the message says why.
    """
    found = folder / "bin" / "python"
    if not found.exists():
        _run([python, "-m", "venv", folder])
    if subprocess.run([found, "-I", "-c", INSTALLED], check=False).returncode != 0:
        _run([found, "-m", "pip", "install", "--quiet", *PACKAGES])
    return found


def _run(command: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise RuntimeError(f"`{' '.join(map(str, command[1:]))}` failed: {said}")


def measure_all(python: Path, threads: Sequence[int], seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of the suite's fields, with ``version`` and ``how``.

    Args:
        python: of :func:`environment`.
        seconds: of each side, case and round.

    Raises:
        AssertionError: a result is wrong; that case was not timed.
        RuntimeError: Larq's process ended.
    """
    with Larq(python) as larq:
        for size, channels in CONVS:
            verify(larq, size, channels)
        for count, (size, channels), out in itertools.product(threads, CONVS, ("bits", "float")):
            yield measure(larq, size, channels, out, count, seconds, rounds)


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


def our_case(size: int, channels: int, out: str) -> Case:
    conv = Conv(size, channels, channels)
    written = conv.pixels * (4 * ((channels + 31) // 32) if out == "bits" else 4 * channels)
    nbytes = (conv.inputs + conv.weights) // 8 + written
    build = partial(_build, size, channels, out)
    group = f"bconv2d {out}, padded with +1"
    return Case("bconv2d", group, f"{conv.name} to {out}", ("larq",), build, conv.operations, nbytes)


def _build(size: int, channels: int, out: str) -> Sides:
    x, w = operands(size, channels)
    words, packed = ops.pack_signs(x), ops.pack_conv_weight(w)
    zeros = torch.zeros(1, channels, dtype=torch.int32)
    epilogues: dict[str, ops.Affine | ops.Threshold] = {
        "bits": ops.Threshold(zeros, torch.zeros((channels + 31) // 32, dtype=torch.int32)),
        "float": ops.Affine(torch.full((channels,), 0.5), torch.ones(channels)),
    }

    def ours() -> Tensor:
        return ops.bconv2d(words, packed, padding=1, padding_value=1, epilogue=epilogues[out])

    def expected() -> Tensor:
        image = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), value=1.0)
        y = torch.nn.functional.conv2d(image, w).permute(0, 2, 3, 1)
        return reference.pack_signs(y) if out == "bits" else y * 0.5 + 1

    return Sides(ours, {}, expected)


def measure(
    larq: Larq, size: int, channels: int, out: str, threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """One row; its calls are rounds."""
    case = our_case(size, channels, out)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in KERNELS}
    version = ""
    request = {"size": size, "channels": channels, "out": out, "threads": threads, "seconds": seconds}
    with using_threads(threads):
        sides = case.build()
        sides.check()
        clock = clock_ms()
        for _ in range(rounds):
            ours.append(statistics.median(sample({"ours": sides.ours}, seconds)["ours"]))
            for name, indirect in KERNELS.items():
                answer = larq.ask("measure", indirect=indirect, **request)
                theirs[name].append(statistics.median(answer["ms"]))
                version = answer["version"]
        clock = max(clock, clock_ms())
    best = min(KERNELS, key=lambda name: statistics.median(theirs[name]))
    row = row_of(case, threads, {"ours": ours, "larq": theirs[best]}, clock)
    return {**row, "how": {"larq": best}, "version": version}
