"""A case timed with its peers: of each peer's candidates the fastest takes its turn with ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.case import Call, Case, Sides
from benchmarks.peers import onnx_runtime, openvino, torch_sides
from benchmarks.peers.products import PeerCase
from benchmarks.timing import row_of
from stompp_kernels.bench.machine import clock_ms
from stompp_kernels.bench.turns import compare, sample, using_threads

CALLS = 7  # at least, of each side: slow ones take most of the seconds
CANDIDATE_CALLS = 3


def measure(case: PeerCase, threads: int, seconds: float, with_onnx_runtime: bool) -> dict[str, Any]:
    """A row of the suite's fields, and ``how`` each peer computed the product.

    Raises:
        AssertionError: a result is wrong; nothing was timed.
    """
    with using_threads(threads):
        ours = case.suite.build()
        Sides(ours.ours, {}, ours.expected).check()
        product = case.product()
        found = torch_sides.sides(product)
        if with_onnx_runtime:
            found |= onnx_runtime.sides(product, threads)
        if case.binarizes and not openvino.missing():
            found |= openvino.sides(product, threads)
        for candidates in found.values():
            for candidate in candidates:
                candidate.verify(product.exact)
        runs = {name: {c.how: c.run for c in candidates} for name, candidates in found.items()}
        return in_turn(case.suite, {"ours": ours.ours}, runs, threads, seconds)


def in_turn(
    case: Case,
    ours: Mapping[str, Call],
    peers: Mapping[str, Mapping[str, Call]],
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """A row, of calls that are checked and of torch with this number of threads.

    Args:
        ours: ways to compute it, of which the fastest counts; so for each of the peers.
    """
    how, sides = {}, {}
    for name, runs in {"ours": ours, **peers}.items():
        how[name] = fastest(runs, seconds / 10)
        sides[name] = runs[how[name]]
    clock = clock_ms()
    samples = sample(sides, seconds, CALLS, in_a_row=2)
    clock = max(clock, clock_ms())
    return {**row_of(replace(case, others=tuple(peers)), threads, samples, clock), "how": how}


def fastest(runs: Mapping[str, Callable[[], Any]], seconds: float) -> str:
    if len(runs) == 1:
        return next(iter(runs))
    timings = compare(runs, seconds, CANDIDATE_CALLS)
    return min(timings, key=lambda name: timings[name].median)
