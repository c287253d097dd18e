"""First contact: what `stompp info` says, and what is said of a torch that is too old."""

import importlib.util

import pytest
from processes import run_fresh_python, run_python

import stompp_kernels as sk
from stompp_kernels import installation, missing_library, native
from stompp_kernels.cli import main
from stompp_kernels.torch_release import torch_problem

WITH_AN_OLD_TORCH = """
from importlib import metadata
version = metadata.version
metadata.version = lambda name: "2.9.1+cu128" if name == "torch" else version(name)
"""
TOO_OLD = "stompp_kernels needs torch >= 2.10, and torch 2.9.1+cu128 is installed: run `pip install --upgrade torch`"
RUN_AS_A_MODULE = """
import runpy, sys
sys.argv[1:] = []
runpy.run_module("stompp_kernels", run_name="__main__", alter_sys=True)
"""


def rows():
    return [line.split(None, 1) for line in installation.lines(sk.__version__)]


def test_info_fits_in_ten_lines(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 10
    assert f"stompp_kernels {sk.__version__} in {missing_library.PACKAGE}" in out
    assert f"{native.active_implementation()} is active" in out
    for item in native.implementations():
        assert item.name in out or item.name == "reference"
        assert item.reason in out or item.name == "reference"


def test_the_package_run_as_a_module_is_info():
    done = run_python(RUN_AS_A_MODULE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"package      stompp_kernels {sk.__version__}")
    assert " is active" in done.stdout


def test_a_copy_that_is_hidden_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(missing_library, "compiled_copy", lambda package: tmp_path)
    hidden = (
        f"{missing_library.PACKAGE} hides another copy in {tmp_path}: remove one with `pip uninstall stompp_kernels`"
    )
    if native.library is not None:
        assert any(hidden in " ".join(row) for row in rows())


def test_a_library_that_does_not_load_is_explained(monkeypatch):
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "missing_reason", "the compiled library did not load (file too short)")
    text = "\n".join(installation.lines(sk.__version__))
    assert "reference is active, plain PyTorch" in text
    assert "pip install" in text


def test_extras_that_are_missing_are_one_command(monkeypatch):
    find_spec = importlib.util.find_spec
    absent = ("rich", "matplotlib")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    assert any("run `pip install 'stompp_kernels[train,report]'`" in " ".join(row) for row in rows())


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0", "2.9.1+cu128"])
def test_an_old_torch_is_refused_with_the_command_that_replaces_it(version, monkeypatch):
    monkeypatch.setattr("stompp_kernels.torch_release.torch_version", lambda: version)
    assert torch_problem() == TOO_OLD.replace("2.9.1+cu128", version)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1f2e3d", "2.13.0+cpu", "3.0", "10.1", "a vendor's own"])
def test_other_releases_of_torch_are_taken(version, monkeypatch):
    monkeypatch.setattr("stompp_kernels.torch_release.torch_version", lambda: version)
    assert torch_problem() == ""


@pytest.mark.parametrize("code", ["from stompp_kernels import prepare", "from stompp_kernels.ops import bgemm"])
def test_nothing_is_imported_beside_an_old_torch(code):
    done = run_fresh_python(WITH_AN_OLD_TORCH + code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {TOO_OLD}"


def test_the_command_says_so_in_one_line():
    done = run_fresh_python(WITH_AN_OLD_TORCH + RUN_AS_A_MODULE)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"stompp: {TOO_OLD}\n")
