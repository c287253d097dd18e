"""What the benchmarks share: a case's sides timed in turn, memory kept for backward, and results files."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case
from stompp_kernels.bench.machine import clock_ms, machine
from stompp_kernels.bench.turns import sample, timing_of, using_threads
from stompp_kernels.files import write_json
from stompp_kernels.table import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "results"


def measure(case: Case, threads: int, seconds: float) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Checks a case, then times its sides in turn, in turns of two calls of which the second counts.

    The first finds the caches as another side left them: what a side takes must not depend on the others.

    Args:
        seconds: to spend; each side has at least three turns.

    Returns:
        A row of a results file, and the milliseconds of every call, by side. A ratio is the median over turns of the
        other side's time by ours; its spread are the 20th and the 80th percentile.

    Raises:
        AssertionError: a result is wrong; nothing was timed.
    """
    torch.compiler.reset()  # a formula compiled for many shapes would become one for any shape, and a slower one
    with using_threads(threads):
        sides = case.build()
        sides.check()
        clock = clock_ms()
        samples = sample({"ours": sides.ours, **sides.others}, seconds, at_least=3, in_a_row=2)
        clock = max(clock, clock_ms())
    return row_of(case, threads, samples, clock), samples


def row_of(case: Case, threads: int, samples: dict[str, list[float]], clock: float) -> dict[str, Any]:
    ours = statistics.median(samples["ours"])
    ratios = {name: timing_of(in_turns(samples[name], samples["ours"])) for name in case.others}
    return {
        "op": case.op,
        "group": case.group,
        "name": case.name,
        "threads": threads,
        "kind": case.kind,
        "operations": case.operations,
        "bytes": case.bytes,
        "gops": case.operations / ours / 1e6,
        "gbytes_per_s": case.bytes / ours / 1e6,
        "ratios": {name: ratio.median for name, ratio in ratios.items()},
        "spread": {name: [ratio.p20, ratio.p80] for name, ratio in ratios.items()},
        "ms": {name: asdict(timing_of(values)) for name, values in samples.items()},
        "clock_ms": clock,
    }


def in_turns(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Their time by ours, turn by turn: what slows a machine down for longer than a turn meets both."""
    return [other / own for other, own in zip(theirs, ours, strict=True)]


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


SLOWED = 1.25  # less is in the noise of a chain of some microseconds


def slowed(rows: list[dict[str, Any]]) -> int:
    """Cases before or after which a core took a quarter longer for a fixed chain of additions than at its best."""
    best = min((row["clock_ms"] for row in rows), default=0.0)
    return sum(row["clock_ms"] > SLOWED * best for row in rows)


def commit() -> str:
    """What git calls the tree's state, results aside; "unknown" outside of a repository."""
    changes = ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"]
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(changes, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("-changed" if dirty.stdout.strip() else "")


def about() -> dict[str, str | int]:
    """What a results file must be read with."""
    return {"commit": commit(), **machine()}


def save_each(name: str, command: str, rows: Iterable[dict[str, Any]], folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Collects rows as they are measured and saves all of them after each: a run that is killed leaves what it has."""
    machine_and_commit, found = about(), []
    for row in rows:
        found.append(row)
        write_json(folder / f"{name}.json", {"command": command, "machine": machine_and_commit, "rows": found})
    return found


def save(name: str, command: str, rows: list[dict[str, Any]], folder: Path = RESULTS, **more: Any) -> Path:
    """Writes rows with what they must be read with; returns the file."""
    path = folder / f"{name}.json"
    write_json(path, {"command": command, "machine": about(), **more, "rows": rows})
    return path
