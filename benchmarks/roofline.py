"""How near a case comes to what the machine can do: its operations and bytes at the measured ceilings.

    bound = max(operations / operations a second, bytes / bytes a second)

The ceilings are those of `python -m benchmarks.ceilings`. Both are taken as if nothing else cost time and as if each
byte moved once, so that a share of 1 cannot be expected; one above 1 says that the ceiling was measured too low.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BANDWIDTHS = ("read", "copy")


@dataclass(frozen=True)
class Bound:
    """Seconds that one call takes at least, and what asks for them: "operations" or "bytes"."""

    seconds: float
    by: str

    def share(self, ms: float) -> float:
        """Returns the share of the bound's speed that a call of so many milliseconds reaches."""
        return self.seconds / (ms / 1e3)


class Ceilings:
    """What the machine can do, by number of threads.

    Args:
        rows: of a file ceilings_*.json.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.per_second: dict[tuple[str, int], float] = {}
        self.bandwidth: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for row in rows:
            key = row["name"], row["threads"]
            if row["name"] in BANDWIDTHS:
                self.bandwidth.setdefault(key, []).append((row["bytes"], row["bytes_per_second"]))
            else:
                self.per_second[key] = row["per_second"]
        for points in self.bandwidth.values():
            points.sort()

    def bytes_per_second(self, name: str, threads: int, size: int) -> float | None:
        """Returns the bandwidth of all threads together, which share ``size`` bytes evenly.

        Working sets were measured by thread. The result is on the line, in the logarithm of the size, between those
        measured, and the nearest one's outside of them.
        None where nothing was measured.
        """
        points = self.bandwidth.get((name, threads))
        if not points:
            return None
        own = size / threads
        after = bisect.bisect([measured for measured, _ in points], own)
        if after in (0, len(points)):
            return points[max(after - 1, 0)][1]
        (low, slow), (high, fast) = points[after - 1 : after + 1]
        return slow + (fast - slow) * math.log(own / low) / math.log(high / low)

    def bound(self, row: Mapping[str, Any]) -> Bound | None:
        """Returns the bound of a row of the suite; None where a ceiling that it needs was not measured.

        A case without operations moves its bytes as a copy does. Of products all bytes count as if they were read,
        results too: writing is slower, so that the bound stays one.
        """
        operations, threads = row["operations"], row["threads"]
        bandwidth = self.bytes_per_second("read" if operations else "copy", threads, row["bytes"])
        if bandwidth is None:
            return None
        by_bytes = Bound(row["bytes"] / bandwidth, "bytes")
        if not operations:
            return by_bytes
        ceiling = self.per_second.get((row["kind"], threads))
        if ceiling is None:
            return None
        by_operations = Bound(operations / ceiling, "operations")
        return max(by_operations, by_bytes, key=lambda bound: bound.seconds)
