"""`pytest benchmarks --benchmark-only`: every op of the suite, with plain PyTorch beside it.

The sides of a case take turns in the test of its first side; pytest-benchmark, which times one function
after the other, is then told the samples of each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.case import Case
from benchmarks.timing import measure, save, scaling, slowed, summary
from stompp_kernels import native
from stompp_kernels.bench.turns import using_threads


class Replay:
    """A clock that advances by one sample with each :meth:`step`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: Iterator[float] = iter(())

    def step(self) -> None:
        self.now += next(self.samples) / 1e3


REPLAY = Replay()


class Suite:
    """What was measured in this run, by case and number of threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rows: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.samples: dict[tuple[str, int], dict[str, list[float]] | AssertionError] = {}

    def of(self, case: Case, threads: int) -> dict[str, list[float]]:
        key = case.key, threads
        if key not in self.samples:
            try:
                row, self.samples[key] = measure(case, threads, self.seconds)
                self.rows.append(row)
            except AssertionError as error:
                self.samples[key] = error
                self.refused.append(case.key)
        found = self.samples[key]
        if isinstance(found, AssertionError):
            raise found
        return found


SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suite")
    group.addoption(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure (default: 1 2)"
    )
    group.addoption("--seconds", type=float, default=0.5, help="seconds to measure each case (default: 0.5)")
    group.addoption("--results", type=Path, metavar="FOLDER", help="folder for suite_<implementation>.json")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUITE] = Suite(config.getoption("seconds"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", metafunc.config.getoption("threads"), ids=lambda n: f"{n} threads")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=lambda: REPLAY.now))


@pytest.fixture
def turns(request: pytest.FixtureRequest, benchmark, threads: int):
    """Hands a side of a case to pytest-benchmark. With --benchmark-disable every side is run and checked only."""

    def record(case: Case, side: str) -> None:
        benchmark.group = f"{case.key}, {threads} threads"
        if benchmark.disabled:
            with using_threads(threads):
                case.build().check()
            return
        samples = request.config.stash[SUITE].of(case, threads)[side]
        REPLAY.samples = iter(samples)
        benchmark.pedantic(REPLAY.step, rounds=len(samples))

    return record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    suite = config.stash[SUITE]
    if suite.rows:
        terminalreporter.write_line(f"\n{summary(suite.rows)}\n\n{scaling(suite.rows)}\n")
        slow = slowed(suite.rows)
        terminalreporter.write_line(f"{slow} of {len(suite.rows)} were measured while a core was slowed down")
    for key in dict.fromkeys(suite.refused):
        terminalreporter.write_line(f"{key}: wrong result, not timed")
    folder = config.getoption("results")
    if folder is not None and suite.rows:
        command = "pytest " + " ".join(sys.argv[1:])
        name = f"suite_{native.active_implementation()}"
        refused = list(dict.fromkeys(suite.refused))
        terminalreporter.write_line(str(save(name, command, suite.rows, folder, refused=refused)))
