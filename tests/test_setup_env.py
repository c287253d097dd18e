"""scripts/setup_env.py: which torch goes into the environment of `make`."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env as module

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "setup_env.py"


@pytest.fixture
def setup_env(monkeypatch):
    """The script, with every command that it would run noted in ``calls``, and no network."""
    monkeypatch.setattr(module, "calls", [], raising=False)
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


@pytest.fixture
def checkout(setup_env, monkeypatch, tmp_path):
    """A checkout of one source file, older than a wheel in its folder ``dist``."""
    (tmp_path / "pyproject.toml").write_text('version = "1.2.0"\n')
    source = tmp_path / "source.cpp"
    source.touch()
    os.utime(source, (1, 1))
    machine = "macosx_11_0_arm64" if sys.platform == "darwin" else f"manylinux_2_28_{platform.machine()}"
    wheel = tmp_path / "dist" / f"stompp_kernels-1.2.0-py3-none-{machine}.whl"
    wheel.parent.mkdir()
    wheel.touch()
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    return wheel, source


def test_a_wheel_of_the_checkout_is_found(setup_env, checkout, capsys):
    wheel, source = checkout
    assert setup_env.find_wheel(wheel.parent, [source]) == wheel
    os.utime(source)
    os.utime(wheel, (2, 2))
    assert setup_env.find_wheel(wheel.parent, [source]) is None
    assert f"not using {wheel}: source.cpp is newer" in capsys.readouterr().out
    assert setup_env.find_wheel(wheel.parent / "absent", [source]) is None


@pytest.mark.parametrize("name", ["1.3.0-py3-none-{}", "1.2.0-cp311-cp311-{}", "1.2.0-py3-none-win_amd64"])
def test_other_wheels_are_left(setup_env, checkout, name):
    wheel, source = checkout
    wheel.rename(wheel.with_name(f"stompp_kernels-{name.format(wheel.stem.split('-')[-1])}.whl"))
    assert setup_env.find_wheel(wheel.parent, [source]) is None


def test_a_wheel_is_installed_once(setup_env, checkout, monkeypatch, tmp_path):
    wheel, _ = checkout
    has_torch(setup_env, monkeypatch, "2.13.0+cpu")
    setup_env.use_wheel(tmp_path, {"created": True}, wheel, ["demo"], None)
    assert [command.split("install --no-compile --quiet ")[1] for command in setup_env.calls] == [
        f"--force-reinstall --no-deps {wheel}",
        f"{wheel}[demo] torch==2.13.0+cpu",
    ]
    state = setup_env.read_state(tmp_path)
    assert state["created"]
    setup_env.use_wheel(tmp_path, state, wheel, ["demo"], None)
    assert len(setup_env.calls) == 2
    setup_env.use_wheel(tmp_path, state, wheel, ["demo", "test"], None)
    assert len(setup_env.calls) == 4


def test_tools_come_without_torch_and_without_the_package(setup_env, tmp_path):
    setup_env.install_tools(tmp_path, {"created": True})
    [command] = setup_env.calls
    packages = command.split("install --no-compile --quiet ")[1]
    assert "ninja" in packages
    assert "auditwheel" in packages
    assert not re.search(r"torch|-e|\.\[", packages)
    setup_env.install_tools(tmp_path, setup_env.read_state(tmp_path))
    assert len(setup_env.calls) == 1


def commands_of_make(*arguments):
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH", "VENV")  # of the `make test` that runs this
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
def test_make_names_an_environment_for_each_release():
    text = commands_of_make("test", "TORCH=2.10.0")
    assert '--venv ".venv-2.10.0" --torch "2.10.0"' in text
    assert '".venv-2.10.0/bin/python" -m pytest' in text
    plain = commands_of_make("test")
    assert '--venv ".venv"' in plain
    assert "--torch" not in plain


@pytest.mark.skipif(shutil.which("make") is None or sys.platform != "linux", reason="needs make, on Linux")
def test_wheels_are_compiled_once():
    """They are built against headers alone: no package is compiled into the environment before."""
    [setup, build] = commands_of_make("wheels").splitlines()
    assert setup.endswith(" --tools")
    assert build.endswith("scripts/wheels.py")
