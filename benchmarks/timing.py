"""What every benchmark of the suite shares: cases that are checked before they are timed, and their results file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stompp_kernels.files import write_json
from stompp_kernels.measure import compare, machine
from stompp_kernels.table import table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One figure: our side against others.

    Attributes:
        group: of cases that are summed up together.
        name: within the group.
        ours: the side measured.
        others: the sides it is compared with, by name.
        check: raises AssertionError unless our side's result is right.
        operations: multiplications and additions of one call; 0 where bytes are what counts.
        bytes: read and written by one call.
    """

    group: str
    name: str
    ours: Callable[[], Any]
    others: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    operations: int = 0
    bytes: int = 0


def run(cases: Iterable[Case], threads: int, seconds: float) -> list[dict[str, Any]]:
    """Checks, then times each case with `threads` threads; one row a case."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        for case in cases:
            case.check()
            timings = compare({"ours": case.ours, **case.others}, seconds)
            ours = timings["ours"].median
            rows.append(
                {
                    "group": case.group,
                    "name": case.name,
                    "threads": threads,
                    "gops": case.operations / ours / 1e6,
                    "gbytes_per_s": case.bytes / ours / 1e6,
                    "ratios": {name: timings[name].median / ours for name in case.others},
                    "ms": {name: asdict(timing) for name, timing in timings.items()},
                }
            )
            print(_line(rows[-1]), flush=True)
    finally:
        torch.set_num_threads(before)
    return rows


def saved_bytes(forward: Callable[[], Any], own: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the distinct memory that autograd keeps of ``forward()`` for backward, that of ``own`` left out."""
    left_out = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = forward()
    del result  # what it keeps lived until here: no two share an address
    return sum(kept.values())


def _line(row: dict[str, Any]) -> str:
    ratios = "  ".join(f"{ratio:6.2f}x {name}" for name, ratio in row["ratios"].items())
    rate = f"{row['gops']:7.0f} GOPS" if row["gops"] else f"{row['gbytes_per_s']:7.1f} GB/s"
    return f"{row['group']:<14} {row['name']:<28} {row['threads']} threads  {rate}  {ratios}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric mean of the ratios of each group, by number of threads."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        for name, ratio in row["ratios"].items():
            found.setdefault((row["group"], row["threads"], name), []).append(ratio)
    cells = [
        (
            group,
            threads,
            name,
            f"{statistics.geometric_mean(ratios):.2f}x",
            f"{min(ratios):.2f}x",
            f"{max(ratios):.2f}x",
        )
        for (group, threads, name), ratios in found.items()
    ]
    return table(("group", "threads", "against", "mean", "least", "most"), cells)


def quietest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several rounds of a case, the one in which the other sides took least time.

    What else runs on a shared machine comes and goes over minutes. It disturbs both sides; this choice favours theirs.
    """
    best: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        key = row["group"], row["name"], row["threads"]
        if key not in best or _others_ms(row) < _others_ms(best[key]):
            best[key] = row
    return list(best.values())


def _others_ms(row: dict[str, Any]) -> float:
    return sum(timing["median"] for name, timing in row["ms"].items() if name != "ours")


def scaling(rows: list[dict[str, Any]]) -> str:
    """How many times as fast each group's cases are with more threads than with the fewest."""
    times: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        times.setdefault((row["group"], row["name"]), {})[row["threads"]] = row["ms"]["ours"]["median"]
    found: dict[tuple[str, int], list[float]] = {}
    for (group, _), by_threads in times.items():
        fewest = min(by_threads)
        for threads, ms in by_threads.items():
            if threads != fewest:
                found.setdefault((group, threads), []).append(by_threads[fewest] / ms)
    cells = [
        (group, threads, f"{statistics.geometric_mean(r):.2f}x", f"{min(r):.2f}x", f"{max(r):.2f}x")
        for (group, threads), r in found.items()
    ]
    return table(("group", "threads", "faster", "least", "most"), cells)


def save(name: str, command: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Writes rows with what they must be read with; returns the file."""
    path = folder / f"{name}.json"
    write_json(path, {"command": command, "machine": machine(), "rows": rows})
    return path
