"""A version in a process of its own: `python -m benchmarks.compare.worker TREE THREADS MODULE...`.

The cases are those of MODULEs, found where this file is; ``stompp_kernels`` is TREE's. Requests come as lines of JSON
on the standard input, answers go as lines of JSON to the standard output. Between them the process sleeps.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Call, Case


def package_of(tree: Path) -> str:
    """Imports stompp_kernels from a tree; the implementation that runs.

    Raises:
        RuntimeError: another one was found, or its compiled library does not load.
    """
    sys.path.insert(0, str(tree))
    native = importlib.import_module("stompp_kernels.native")
    found = Path(native.__file__).resolve().parents[1]
    if found != tree.resolve():
        raise RuntimeError(f"stompp_kernels comes from {found}, not from {tree}")
    if native.library is None:
        raise RuntimeError(f"in {tree} {native.missing_reason}")
    return native.active_implementation()


class Bench:
    """The cases, and the one that is measured."""

    def __init__(self, modules: list[str], threads: int) -> None:
        torch.set_num_threads(threads)
        # On one thread what is counted is the processor's time: others that want the core add nothing to it.
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.cases: dict[str, Case] = {}
        self.failed: dict[str, str] = {}
        self.ours: Call | None = None
        for name in modules:
            try:
                found = list(importlib.import_module(name).cases())
            except Exception as error:  # whatever this version lacks
                self.failed[name] = said(error)
            else:
                self.cases.update({case.key: case for case in found})

    def list_cases(self) -> dict[str, Any]:
        return {"cases": [[case.key, case.group] for case in self.cases.values()], "failed": self.failed}

    def prepare(self, key: str) -> dict[str, str]:
        """Builds and checks a case. What is wrong with its result, or why there is none, if so."""
        self.ours = None
        if key not in self.cases:
            return {"error": "; ".join([f"{key!r} is not among its cases", *self.failed.values()])}
        torch.manual_seed(0)
        try:
            sides = self.cases[key].build()
            sides.check_ours()
        except AssertionError as error:
            return {"wrong": said(error)}
        except Exception as error:  # this version lacks what the case uses
            return {"error": said(error)}
        self.ours = sides.ours
        return {}

    def block(self, seconds: float) -> dict[str, float]:
        """The median time of the calls of some seconds, one at least, after one that is not counted."""
        assert self.ours is not None, "prepare comes first"
        ours, clock, times = self.ours, self.clock, []
        ours()
        end = clock() + seconds
        while True:
            start = clock()
            ours()
            stop = clock()
            times.append(stop - start)
            if stop >= end:
                return {"ms": 1e3 * statistics.median(times)}


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def main() -> None:
    tree, threads, *modules = sys.argv[1:]
    # Whatever else prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    implementation = package_of(Path(tree))
    bench = Bench(modules, int(threads))
    do = {"list": bench.list_cases, "prepare": bench.prepare, "block": bench.block}
    print(json.dumps({"implementation": implementation}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(do[request.pop("do")](**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
