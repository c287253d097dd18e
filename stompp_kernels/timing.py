"""Timing of alternatives side by side on a shared, noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def compare(sides: Mapping[str, Callable[[], Any]], seconds: float = 0.5, at_least: int = 5) -> dict[str, float]:
    """Median milliseconds of each side, alternating the sides call by call so that noise meets all of them alike.

    Args:
        sides: functions of no argument, by name.
        seconds: time to spend in all, after one warm-up call of each side.
        at_least: calls of each side.
    """
    for function in sides.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < at_least:
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in samples.items()}
