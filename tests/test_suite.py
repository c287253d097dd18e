"""The benchmark suite: what it covers, what it refuses to time, and what it writes."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from processes import run_python

from benchmarks.case import Case, Sides
from benchmarks.timing import measure
from stompp_kernels import ops

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))
CASE = "max_pool2d_signs and 112x112"


def cases():
    return [case for name in MODULES for case in importlib.import_module(f"benchmarks.{name}").cases()]


# As `python -m pytest`, outside of the processes of pytest-xdist.
PYTEST = """
import os, sys, pytest
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_suite(folder, *arguments, case=CASE, plugin=""):
    """pytest on one case of the suite, with a plugin that may change the package before."""
    (folder / "changes.py").write_text(plugin)
    options = ["-q", "-p", "no:cacheprovider", "-p", "changes", "benchmarks", "-k", case]
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    options += ["--threads", "1", "--seconds", "0.01"]
    return run_python(PYTEST, *options, *arguments, folder=ROOT, PYTHONPATH=path)


def test_every_op_has_a_case_and_no_two_cases_share_a_name():
    found = cases()
    kernels = {
        *("bgemm", "bconv2d", "pack_signs", "pack_outside", "unpack_signs", "max_pool2d_signs", "refresh_mask_"),
        *("progressive", "progressive_drawn", "linear_binary_weight", "conv2d_binary_weight"),
        *("conv2d_float", "batched_bgemm"),
    }
    assert {case.op for case in found} == kernels <= set(ops.__all__)
    assert len({case.key for case in found}) == len(found)
    assert all(case.others[:2] == ("eager", "compiled") for case in found)
    assert all(case.bytes > 0 for case in found)


@pytest.mark.slow
def test_pytest_benchmark_and_the_results_file_tell_the_same_samples(tmp_path):
    done = run_suite(tmp_path, "--benchmark-only", "--results", tmp_path, f"--benchmark-json={tmp_path / 'told.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("suite_*.json")
    results = json.loads(path.read_text())
    assert {"commit", "processor", "features", "threads", "torch"} <= set(results["machine"])
    assert results["refused"] == []
    (row,) = results["rows"]
    assert list(row["ms"]) == ["ours", "eager", "compiled"]
    told = {b["params"]["side"]: b["stats"] for b in json.loads((tmp_path / "told.json").read_text())["benchmarks"]}
    for side, timing in row["ms"].items():
        assert told[side]["median"] * 1e3 == pytest.approx(timing["median"])
        assert told[side]["rounds"] == timing["calls"]
    for side in row["ratios"]:
        low, high = row["spread"][side]
        assert 0 < low <= row["ratios"][side] <= high


WRONG = """
from stompp_kernels import ops

right = ops.max_pool2d_signs
ops.max_pool2d_signs = lambda *arguments: right(*arguments) ^ 1
"""


@pytest.mark.slow
def test_a_wrong_kernel_is_refused(tmp_path):
    done = run_suite(tmp_path, "--benchmark-only", "--results", tmp_path, plugin=WRONG)
    assert done.returncode == 1
    assert "wrong result, not timed" in done.stdout
    assert "3 failed" in done.stdout
    assert not list(tmp_path.glob("suite_*.json"))


@pytest.mark.slow
def test_a_wrong_kernel_is_refused_without_timing_too(tmp_path):
    assert run_suite(tmp_path, "--benchmark-disable", case=f"{CASE} and eager").returncode == 0
    done = run_suite(tmp_path, "--benchmark-disable", plugin=WRONG)
    assert done.returncode == 1
    assert "wrong result: not timed" in done.stdout


def test_a_compiled_formula_that_differs_from_the_eager_one_is_refused():
    def build():
        x = torch.ones(3)
        return Sides(lambda: x, {"eager": lambda: x, "compiled": lambda: x + 1}, lambda: x)

    case = Case("op", "group", "name", ("eager", "compiled"), build)
    with pytest.raises(AssertionError):
        measure(case, 1, 0.01)
