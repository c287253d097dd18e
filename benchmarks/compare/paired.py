"""One case on both sides: checked, timed in turns until it is decided, and again where it changed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from benchmarks.compare.decision import FASTER, SLOWER, UNDECIDED, Plan, median_interval, verdict
from benchmarks.compare.side import Side, SideError

WRONG, BROKEN, NOT_IN_BASE, IN_NEITHER = "wrong on HEAD", "broken on HEAD", "not in BASE", "in neither"
FAILING = (SLOWER, WRONG, BROKEN)
CONFIRMATIONS = 2  # pairs of new processes in which what is slower or faster must be so again


@dataclass(frozen=True)
class Row:
    """What is found about a case.

    Attributes:
        base_ms, head_ms: medians of all blocks; 0 where nothing was timed.
        ratio: the median of HEAD's time by BASE's, pair by pair; ``low`` and ``high`` are its interval's ends.
        pairs: of blocks.
        note: why it was not timed or not decided.
    """

    case: str
    verdict: str
    base_ms: float = 0.0
    head_ms: float = 0.0
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    pairs: int = 0
    note: str = ""


class Timed(Protocol):
    def block(self) -> float: ...


def measure(key: str, base: Timed, head: Timed, plan: Plan, now: Callable[[], float] = time.monotonic) -> Row:
    """Blocks of both sides in turn, who is first by lot, until the interval of their ratios says enough."""
    lots, start = random.Random(key), now()
    pairs: list[tuple[float, float]] = []
    for look in range(plan.looks):
        while now() - start < plan.end(look) or len(pairs) < plan.least:
            if lots.random() < 0.5:
                base_ms, head_ms = base.block(), head.block()
            else:
                head_ms, base_ms = head.block(), base.block()
            pairs.append((base_ms, head_ms))
        ratios = [head_ms / base_ms for base_ms, head_ms in pairs]
        low, high = median_interval(ratios, plan.error)
        found = verdict((low, high))
        if found != UNDECIDED:
            break
    base_median, head_median = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row(key, found, base_median, head_median, statistics.median(ratios), low, high, len(pairs))


def compare(key: str, base: Side, head: Side, plan: Plan) -> Row:
    """What is found about a case; it is timed only where both sides give the right result."""
    try:
        of_head, of_base = (side.ask("prepare", key=key) for side in (head, base))
        if "wrong" in of_head:
            return Row(key, WRONG, note=of_head["wrong"])
        if of_head:
            return Row(key, IN_NEITHER if of_base else BROKEN, note=of_head["error"])
        if of_base:
            return Row(key, NOT_IN_BASE, note=" ".join(of_base.values()))
        return measure(key, base, head, plan)
    except SideError as error:
        return Row(key, NOT_IN_BASE if error.side is base else BROKEN, note=str(error))


def confirm(rows: list[Row], base: Side, head: Side, plan: Plan) -> list[Row]:
    """Rows with the slower and faster ones measured again; one that does not stay so is undecided.

    Where memory happens to lie makes a process up to a fifth slower than another of the same version, steadily, for as
    long as it lives. Only new processes tell that from a version that is slower.
    """
    for _ in range(CONFIRMATIONS):
        base.close()
        head.close()
        rows = [
            confirmed(row, compare(row.case, base, head, plan)) if row.verdict in (SLOWER, FASTER) else row
            for row in rows
        ]
    return rows


def confirmed(before: Row, again: Row) -> Row:
    if again.verdict in (before.verdict, WRONG, BROKEN):
        return again
    return replace(again, verdict=UNDECIDED, note=f"{before.ratio - 1:+.1%} in other processes")
