"""Timing of alternatives by turns, on a shared, noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one side: median, 20th and 80th percentile, and the number of calls they come from."""

    median: float
    p20: float
    p80: float
    calls: int


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds within which 20, 50, 90 and 99 % of the calls of one side ended, and those of the fastest."""

    least: float
    p20: float
    p50: float
    p90: float
    p99: float
    calls: int

    @staticmethod
    def of(samples: Sequence[float]) -> Percentiles:
        """Computes the percentiles of at least two samples."""
        points = statistics.quantiles(samples, n=100, method="inclusive")
        return Percentiles(min(samples), points[19], points[49], points[89], points[98], len(samples))


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Lets torch use this many threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(sides: Mapping[str, Callable[[], Any]], seconds: float = 0.5, at_least: int = 5) -> dict[str, Timing]:
    """Times each side, alternating the sides call by call so that noise meets all of them alike.

    Args:
        sides: functions of no argument, by name.
        seconds: time to spend in all, after one warm-up call of each side.
        at_least: calls of each side, at least 2.
    """
    return {name: timing_of(values) for name, values in sample(sides, seconds, at_least).items()}


def sample(
    sides: Mapping[str, Callable[[], Any]], seconds: float = 0.5, at_least: int = 5, in_a_row: int = 1
) -> dict[str, list[float]]:
    """The milliseconds of every call that :func:`compare` takes the median of.

    Args:
        in_a_row: calls of a side before the next one's turn. From 2 on the first of them is not counted: it finds the
            caches as another side left them.
    """
    for function in sides.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < at_least:
        for name, function in sides.items():
            for call in range(in_a_row):
                start = time.perf_counter()
                function()
                if call > 0 or in_a_row == 1:
                    samples[name].append(1e3 * (time.perf_counter() - start))
    return samples


def compare_on_gpu(sides: Mapping[str, Callable[[], Any]], rounds: int = 50) -> dict[str, Timing]:
    """Times each side on the current CUDA device by its events, alternating the sides call by call.

    Args:
        sides: functions of no argument, by name, that queue work on the current stream.
        rounds: calls of each side, at least 2, after three warm-up calls.
    """
    return {name: timing_of(values) for name, values in sample_on_gpu(sides, rounds).items()}


def sample_on_gpu(sides: Mapping[str, Callable[[], Any]], rounds: int = 50) -> dict[str, list[float]]:
    """The milliseconds of every call that :func:`compare_on_gpu` takes the median of."""
    for function in [*sides.values()] * 3:
        function()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def sample_on(
    device: torch.device, sides: Mapping[str, Callable[[], Any]], seconds: float, at_least: int = 5, in_a_row: int = 1
) -> dict[str, list[float]]:
    """:func:`sample`, or on a CUDA device :func:`sample_on_gpu` with ten times ``at_least`` calls of each side."""
    if device.type == "cuda":
        return sample_on_gpu(sides, 10 * at_least)
    return sample(sides, seconds, at_least, in_a_row)


def timing_of(samples: Sequence[float]) -> Timing:
    """Computes the median and the fifths of at least two samples."""
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), fifths[0], fifths[3], len(samples))
