"""What a comparison says at its end: tables, lists, one line, a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare.counts import CountRow
from benchmarks.compare.decision import ERROR, LIMIT, SAME, UNDECIDED, Plan
from benchmarks.compare.paired import FAILING, Row
from benchmarks.compare.side import Side
from stompp_kernels.bench.machine import machine
from stompp_kernels.files import write_json
from stompp_kernels.table import table


def line_of(row: Row) -> str:
    """One case, as soon as it is found."""
    change = f"{percent(row.ratio)} ({percent(row.low)} to {percent(row.high)})" if row.pairs else ""
    return ": ".join(filter(None, (row.case, row.verdict, change, row.note)))


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def tables(rows: Sequence[Row], counts: Sequence[CountRow]) -> str:
    timed = [
        (
            row.case,
            row.verdict,
            f"{row.base_ms:.4f}",
            f"{row.head_ms:.4f}",
            *map(percent, (row.ratio, row.low, row.high)),
        )
        for row in rows
        if row.pairs
    ]
    counted = [
        (row.case, row.implementation, row.verdict, f"{row.base:.3f}", f"{row.head:.3f}", percent(row.ratio))
        for row in counts
    ]
    parts = []
    if timed:
        parts.append(table(("case", "verdict", "BASE ms", "HEAD ms", "change", "at least", "at most"), timed))
    if counted:
        header = ("instructions per 256 products", "implementation", "verdict", "BASE", "HEAD", "change")
        parts.append(table(header, counted))
    parts += [line_of(row) for row in rows if row.note]
    return "\n\n".join(parts)


def summary(rows: Sequence[Row], counts: Sequence[CountRow]) -> str:
    """How many of each verdict; "no change" where none is known to have changed."""
    found: dict[str, int] = {}
    for row in (*rows, *counts):
        found[row.verdict] = found.get(row.verdict, 0) + 1
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(found.items()))
    if set(found) <= {SAME, UNDECIDED}:
        return f"no change: {said}"
    return f"{'FAILED' if failing(rows, counts) else 'passed'}: {said}"


def failing(*kinds: Iterable[Row | CountRow]) -> bool:
    return any(row.verdict in FAILING for rows in kinds for row in rows)


def save(
    path: Path, base: Side, head: Side, plan: Plan, rows: Sequence[Row], counts: Sequence[CountRow], note: str
) -> None:
    """Writes everything with what it must be read with."""
    value = {
        "command": " ".join(["python -m benchmarks.compare", *sys.argv[1:]]),
        "machine": {**machine(), "implementation": head.implementation, "threads": head.threads},
        "base": {"name": base.tree.name, "commit": base.tree.commit, "implementation": base.implementation},
        "head": {"name": head.tree.name, "commit": head.tree.commit, "implementation": head.implementation},
        "limit": LIMIT,
        "error": ERROR,
        "plan": asdict(plan),
        "failed": failing(rows, counts),
        "rows": [asdict(row) for row in rows],
        "instructions": [{**asdict(row), "ratio": row.ratio} for row in counts],
        "note": note,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
