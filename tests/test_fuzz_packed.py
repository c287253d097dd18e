"""The fuzzer of packed files (tests/fuzz_packed.py) in a process of its own; STOMPP_FUZZ=10000 for a long run."""

import os
import re
import sys

import pytest
from processes import run_fresh_python

pytestmark = pytest.mark.slow  # hundreds of files

RUN = "import runpy; runpy.run_module('fuzz_packed', run_name='__main__', alter_sys=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_mutated_files_are_refused_or_give_the_network_that_they_describe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = int(os.environ.get("STOMPP_FUZZ", "200"))
    result = run_fresh_python(RUN, count)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert f"{count} files" in result.stdout
    outcomes = set(re.findall(r"checksum (fits|as it was): ([a-z ,]+): \d+", result.stdout))
    assert outcomes >= {("as it was", "refused"), ("fits", "refused"), ("fits", "the same"), ("fits", "another, runs")}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_hostile_structures_run_no_code_and_take_neither_memory_nor_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = int(os.environ.get("STOMPP_FUZZ", "400"))
    result = run_fresh_python(RUN, count, "--structure")
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert f"{count} files" in result.stdout
    outcomes = set(re.findall(r"checksum fits: ([a-z ,]+): \d+", result.stdout))
    assert outcomes >= {"refused", "the same", "another, runs"}
