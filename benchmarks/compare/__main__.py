"""Fails where HEAD is slower than BASE: `python -m benchmarks.compare BASE [HEAD]`.

Both versions are built in a cache folder and run the cases of this tree's suite (bench_*.py), each in a process of its
own: checked first, then timed in turns. A case is slower when the whole interval of its ratio lies above 1.05, and does
so again in two more pairs of processes. An interval misses by chance, of any case at all, in one run in a hundred at
most. More than 2 % more instructions, as callgrind counts them, are slower too.

Exit status: 0, 1 (slower, wrong or broken on HEAD), 2 (a version does not exist, build or start; bad arguments).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import printout
from benchmarks.compare.counts import compare_counts
from benchmarks.compare.decision import Plan
from benchmarks.compare.paired import BROKEN, IN_NEITHER, Row, compare, confirm
from benchmarks.compare.side import Side, SideError
from benchmarks.compare.trees import WORK_TREE, Tree, TreeError, commit_of, locked, provide
from benchmarks.compiled import ROOT

MODULES = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("bench_*.py"))]


@dataclass(frozen=True)
class Times:
    """Seconds of a case until the first and the last look at it."""

    seconds: float
    most: float


USUAL, QUICK = Times(2.0, 16.0), Times(0.5, 4.0)


def positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("base", metavar="BASE", help="a commit, a branch, a tag")
    found.add_argument(
        "head", metavar="HEAD", nargs="?", default=WORK_TREE, help="the same, or . for the work tree as it is (default)"
    )
    found.add_argument("--cases", default="", metavar="PATTERN", help="run only the cases whose name contains this")
    found.add_argument("--quick", action="store_true", help="run one case of each group, in a quarter of the time")
    found.add_argument("--threads", type=count, default=1, help="threads of each side (default: 1)")
    found.add_argument("--seconds", type=positive, help="seconds for a case, checks aside (default: 2; quick: 0.5)")
    found.add_argument(
        "--max-seconds", type=positive, help="seconds for a case that is not decided (default: 8 times as many)"
    )
    found.add_argument("--no-instructions", action="store_true", help="measure times only")
    found.add_argument("--cache", type=Path, default=ROOT / "build" / "compare", help="folder of builds")
    found.add_argument(
        "--jobs", type=count, default=os.cpu_count() or 1, help="number of compilers at a time (default: all cores)"
    )
    found.add_argument("--output", type=Path, metavar="FILE", help="write everything to this JSON file")
    return found


def times_of(arguments: argparse.Namespace) -> Times:
    usual = QUICK if arguments.quick else USUAL
    seconds = arguments.seconds or usual.seconds
    most = arguments.max_seconds or seconds * usual.most / usual.seconds
    if most < seconds:
        raise ValueError(f"--max-seconds {most:g} is less than --seconds {seconds:g}")
    return Times(seconds, most)


def chosen(cases: Sequence[Sequence[str]], pattern: str, quick: bool) -> list[str]:
    """The names of cases, given as (name, group), that are compared."""
    fitting = [(key, group) for key, group in cases if pattern in key]
    if quick:
        fitting = list({group: (key, group) for key, group in reversed(fitting)}.values())[::-1]
    return [key for key, _ in fitting]


def time_both(base: Side, head: Side, arguments: argparse.Namespace) -> tuple[Plan, list[Row]]:
    """A row for each case, and for each module of cases that does not load on HEAD.

    Raises:
        ValueError: no case fits.
    """
    times = times_of(arguments)
    known, failed_on_base = head.ask("list"), base.ask("list")["failed"]
    print(f"BASE runs {base.implementation}, HEAD {head.implementation}; {head.threads} threads", flush=True)
    rows = [
        Row(module, IN_NEITHER if module in failed_on_base else BROKEN, note=why)
        for module, why in known["failed"].items()
    ]
    keys = chosen(known["cases"], arguments.cases, arguments.quick)
    if not keys and not rows:
        raise ValueError(f"--cases {arguments.cases!r}: no case has this in its name")
    plan = Plan(times.seconds, times.most, max(1, len(keys)))
    for key in keys:
        rows.append(compare(key, base, head, plan))
        print(printout.line_of(rows[-1]), flush=True)
    return plan, confirm(rows, base, head, plan)


def run(base: Tree, head: Tree, arguments: argparse.Namespace, modules: list[str] = MODULES) -> int:
    sides = (Side(tree, arguments.threads, modules) for tree in (base, head))
    with closing(next(sides)) as base_side, closing(next(sides)) as head_side:
        plan, rows = time_both(base_side, head_side, arguments)
    counts, note = ([], "") if arguments.no_instructions else compare_counts(base, head, arguments.cache)
    print("\n" + printout.tables(rows, counts) + "\n")
    if note:
        print(note)
    print(printout.summary(rows, counts))
    if arguments.output:
        printout.save(arguments.output, base_side, head_side, plan, rows, counts, note)
    return int(printout.failing(rows, counts))


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    arguments.cache = arguments.cache.resolve()
    try:
        times_of(arguments)
        for name in {arguments.base, arguments.head} - {WORK_TREE}:
            commit_of(name)  # before the other one is built for minutes
        with locked(arguments.cache):
            base, head = (provide(name, arguments.cache, arguments.jobs) for name in (arguments.base, arguments.head))
            return run(base, head, arguments)
    except (ValueError, TreeError, SideError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
