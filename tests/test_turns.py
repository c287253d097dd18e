"""Timing by turns, result files and the description of the machine."""

import time

import pytest

from stompp_kernels.bench import turns
from stompp_kernels.bench.machine import machine
from stompp_kernels.files import write_json


def test_sides_alternate_and_the_slower_one_shows():
    calls = []

    def side(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)

        return run

    timings = turns.compare({"fast": side("fast", 0.0005), "slow": side("slow", 0.01)}, seconds=0.1, at_least=5)
    assert calls[:6] == ["fast", "slow"] * 3
    assert timings["slow"].calls == timings["fast"].calls >= 5
    assert timings["slow"].median > timings["fast"].median
    for timing in timings.values():
        assert 0 < timing.p20 <= timing.median <= timing.p80


def test_results_are_replaced_whole(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_machine_is_described():
    assert {"processor", "implementation", "threads", "torch"} <= set(machine())
