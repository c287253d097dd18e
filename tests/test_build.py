"""setup.py: clear errors, and compiler commands that any machine of the architecture can run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands in for a compiler: notes its arguments and leaves the files that ninja expects, among them
# the list of the headers that were included.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> commands.log
while [ $# -gt 0 ]; do
    case "$1" in
        -o) : > "$2" ;;
        -MF) echo "object: csrc/core/bits.h" > "$2" ;;
    esac
    shift
done
"""


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("stompp_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project with our setup.py, beside a fake torch, and no build variables set."""
    folder = tmp_path / "a project"
    for name in ("csrc/core", "csrc/torch", "stompp_kernels", "site/torch"):
        (folder / name).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("README.md", "stompp_kernels/__init__.py", "stompp_kernels/py.typed"):
        (folder / name).touch()
    for name in ("csrc/core/bits.h", "csrc/core/pack.cpp", "csrc/torch/bindings.cpp"):
        (folder / name).touch()
    (folder / "fake-c++").write_text(FAKE_COMPILER)
    (folder / "fake-c++").chmod(0o755)
    fake_torch(folder, "__version__ = '2.10.0'")
    for name in ("CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "STOMPP_BUILD_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def fake_torch(project, source):
    (project / "site" / "torch" / "__init__.py").write_text(source + "\n")


def run_setup(project, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(project / "site"), **variables}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_clear_error(result, *fragments):
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    assert "error: " in result.stdout
    for fragment in fragments:
        assert fragment in result.stdout


def test_missing_torch_is_explained_before_anything_is_fetched(project):
    fake_torch(project, "raise ImportError('libnowhere.so: cannot open')")
    result = run_setup(project, "dist_info", "--output-dir", ".")
    assert_clear_error(result, "--no-build-isolation", "libnowhere.so", "STOMPP_BUILD_NATIVE=0")


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0", "2.9.1+cu128", "unknown"])
def test_old_torch_is_refused(build, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(build.PlatformError, match=re.escape(version)) as error:
        build.find_torch()
    assert "torch >= 2.10" in str(error.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1f2e3d", "2.13.0+cpu", "10.0"])
def test_new_torch_is_accepted(build, monkeypatch, tmp_path, version):
    fake = types.SimpleNamespace(__version__=version, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert build.find_torch() == tmp_path.resolve()


def test_missing_compiler_is_explained(project):
    result = run_setup(project, "build_ext", CXX="/nonexistent/c++")
    assert_clear_error(result, "C++17 compiler", "/nonexistent/c++", "set CXX")


def test_no_compiler_on_path(build, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.PlatformError, match=r"c\+\+, g\+\+, clang\+\+"):
        build.find_compiler()


def test_compiler_may_carry_a_launcher(build, monkeypatch, project):
    monkeypatch.setenv("CXX", f"'{project / 'fake-c++'}' g++ -m64")
    assert build.find_compiler() == [str(project / "fake-c++"), "g++", "-m64"]


def test_missing_ninja_is_explained(build, monkeypatch, tmp_path):
    def no_distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.metadata, "distribution", no_distribution)
    with pytest.raises(build.PlatformError, match="pip install ninja"):
        build.find_ninja()


def test_ninja_package_is_found_off_path(build, monkeypatch, tmp_path):
    pytest.importorskip("ninja", reason="only the ninja of the system is installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(build.find_ninja(), os.X_OK)


def test_unknown_native_switch_is_refused(build, monkeypatch):
    monkeypatch.setenv("STOMPP_BUILD_NATIVE", "off")
    with pytest.raises(build.PlatformError, match="'off'"):
        build.native_enabled()


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_bad_max_jobs_is_refused(build, monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    command = build.BuildNative(build.setuptools.Distribution())
    with pytest.raises(build.PlatformError, match="MAX_JOBS"):
        command.run_ninja(["ninja"])


def test_failed_compilation_ends_without_a_traceback(project):
    result = run_setup(project, "build_ext", "--inplace", CXX="false")
    assert_clear_error(result, "did not compile")
    assert not list(project.glob("stompp_kernels/*.so"))


def test_pure_python_package_needs_no_torch(project):
    fake_torch(project, "raise ImportError('no torch')")
    result = run_setup(project, "build", CXX="/nonexistent/c++", STOMPP_BUILD_NATIVE="0")
    assert result.returncode == 0, result.stdout
    built = sorted(path.name for path in project.glob("build/lib/stompp_kernels/*"))
    assert built == ["__init__.py", "py.typed"]


def test_build_commands(project):
    """The whole way through ninja: what it compiles, with which flags, and what it then repeats."""
    variables = {"CXX": "./fake-c++", "CXXFLAGS": "-march=native -mavx2 -mcpu=native -m64 -g1"}
    log = project / "commands.log"

    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    assert len(list(project.glob("stompp_kernels/_C*.so"))) == 1
    *compiles, link = log.read_text().splitlines()
    assert len(compiles) == 2
    for command in compiles:
        words = command.split()
        machine_flags = [word for word in words if word.startswith("-m")]
        assert machine_flags == ["-m64"]
        assert "-g1" in words
        assert "-ffp-contract=off" in words
        assert "-fvisibility=hidden" in words
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in words
    assert "rpath" not in link
    assert "-ltorch_cpu" in link.split()

    assert not list(project.glob(".ninja*"))

    assert rebuilt(project, "csrc/core/pack.cpp", **variables) == ["csrc/core/pack.cpp"]
    everything = ["csrc/core/pack.cpp", "csrc/torch/bindings.cpp"]
    assert rebuilt(project, "csrc/core/bits.h", **variables) == everything
    assert rebuilt(project, "README.md", CXX="./fake-c++", CXXFLAGS="-O1") == everything


def rebuilt(project, changed, **variables):
    """The sources compiled by a build after a file has changed."""
    (project / "commands.log").unlink()
    later = (project / changed).stat().st_mtime + 10
    os.utime(project / changed, (later, later))
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    return sorted(re.findall(r"-c (\S+)", commands))


def test_build_requirements(build):
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = (.*)$", text, re.MULTILINE).group(1)
    assert f"setuptools>={build.MIN_SETUPTOOLS}" in requires
    assert "torch" not in requires
