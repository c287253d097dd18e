"""scripts/setup_env.py: which torch goes into the environment of `make`."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "setup_env.py"


@pytest.fixture
def setup_env(monkeypatch):
    """The script, with every command that it would run noted in ``calls``, and no network."""
    spec = importlib.util.spec_from_file_location("stompp_setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []
    monkeypatch.setattr(module, "call", lambda command, **options: module.calls.append(" ".join(map(str, command))))
    monkeypatch.setattr(module, "cpu_index_answers", lambda: False)
    return module


def has_torch(setup_env, monkeypatch, version):
    monkeypatch.setattr(setup_env, "probe", lambda python, code: (version, "broken" if version is None else ""))


@pytest.mark.parametrize(("release", "installed"), [(None, "torch==2.13.0"), ("2.10.0", "torch==2.10.0")])
def test_an_environment_without_torch_gets_the_release_that_is_asked_for(setup_env, monkeypatch, release, installed):
    has_torch(setup_env, monkeypatch, "none")
    setup_env.install_torch("python", Path("venv"), release)
    [command] = setup_env.calls
    assert command.split()[-1] == installed


@pytest.mark.parametrize(("release", "version"), [(None, "2.14.1"), ("2.14.1", "2.14.1"), ("2.13.0", "2.13.0+cpu")])
def test_a_torch_that_fits_is_kept(setup_env, monkeypatch, release, version):
    has_torch(setup_env, monkeypatch, version)
    setup_env.install_torch("python", Path("venv"), release)
    assert setup_env.calls == []


@pytest.mark.parametrize(
    ("release", "version", "message"),
    [
        ("2.10.0", "2.13.0+cpu", r"venv has torch 2\.13\.0\+cpu, and TORCH=2\.10\.0 asks for another"),
        ("2.10.0", "2.10.1", r"venv has torch 2\.10\.1, and TORCH=2\.10\.0 asks for another"),
        (None, "2.9.1", r"venv has torch 2\.9\.1; stompp_kernels needs 2\.10 or later"),
        (None, None, r"cannot be imported \(broken\)"),
    ],
)
def test_another_torch_is_refused(setup_env, monkeypatch, release, version, message):
    has_torch(setup_env, monkeypatch, version)
    with pytest.raises(SystemExit, match=message):
        setup_env.install_torch("python", Path("venv"), release)


def test_the_torch_of_another_release_in_the_parent_python_is_not_shared(setup_env, monkeypatch, tmp_path):
    has_torch(setup_env, monkeypatch, "2.13.0+cpu")
    commands = []
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # not in a virtual environment

    def note(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(setup_env.subprocess, "run", note)
    setup_env.create(tmp_path / "any", None)
    setup_env.create(tmp_path / "other", "2.10.0")
    assert ["--system-site-packages" in command for command in commands] == [True, False]


def test_the_version_of_torch_is_the_one_that_pip_knows(setup_env, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text('__version__ = "2.14.1+cu130"\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch-2.14.1.dist-info").mkdir()
    (tmp_path / "torch-2.14.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.14.1\n")
    assert setup_env.probe(Path(sys.executable), setup_env.PROBE_TORCH) == ("2.14.1", "")


@pytest.mark.parametrize("release", ["2.9.1", "latest", "2.10", ">=2.10.0", "2.10.0+cpu"])
def test_nonsense_as_a_release_is_refused(release):
    done = subprocess.run([sys.executable, SCRIPT, "--torch", release], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{release!r} is not allowed: name a release from 2.10.0 on" in done.stderr


def commands_of_make(*arguments):
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH", "VENV")  # of the `make test` that runs this
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", "-n", "test", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
def test_make_names_an_environment_for_each_release():
    text = commands_of_make("TORCH=2.10.0")
    assert '--venv ".venv-2.10.0" --torch "2.10.0"' in text
    assert '".venv-2.10.0/bin/python" -m pytest' in text
    plain = commands_of_make()
    assert '--venv ".venv"' in plain
    assert "--torch" not in plain
