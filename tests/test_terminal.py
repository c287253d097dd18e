"""Only training needs rich, and says so where it is missing."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from processes import run_python

from stompp_kernels.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def without_rich(monkeypatch):
    for name in ("rich", "rich.console", "rich.progress", "rich.table"):
        monkeypatch.setitem(sys.modules, name, None)


def test_neither_the_package_nor_training_imports_rich_before_a_console_is_asked_for():
    modules = ("stompp_kernels", "stompp_kernels.cli", "stompp_kernels.training.demo", "stompp_kernels.training.ablate")
    code = f"""
import sys
sys.modules["rich"] = None
import {", ".join(modules)}
assert stompp_kernels.cli.main(["info"]) == 0
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "scalar" in done.stdout


@pytest.mark.parametrize("command", ["train", "demo", "ablate"])
def test_a_command_that_needs_rich_says_so_before_it_writes(command, without_rich, tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text('name = "study"\n[model]\nname = "small_resnet"\n[data]\nname = "digits"\n')
    output = tmp_path / "output"
    assert main([command, *([] if command == "demo" else [str(study)]), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'rich, which is missing: pip install "stompp_kernels[train]"' in error
    assert not output.exists()


def test_rich_comes_with_training_and_the_demo_alone():
    try:
        toml = import_module("tomllib")
    except ImportError:  # Python 3.10
        toml = import_module("tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [line for line in project["dependencies"] if line.startswith("rich")]
    assert [name for name, lines in project["optional-dependencies"].items() if "rich" in lines] == ["demo", "train"]
