"""build_tools: what it finds, which flags it keeps, and the architectures it compiles for."""

import os
import re
import sys
import types
from importlib import metadata

import pytest
import setuptools
from build_project import LOOSE, ROOT
from setuptools.errors import PlatformError

from build_tools.architectures import (
    DEFAULT_ARCHITECTURES,
    architectures_of,
    parse_architectures,
    requested_architectures,
)
from build_tools.build_ext import BuildNative
from build_tools.commands import compression_flags, nvcc_command, to_host
from build_tools.cuda_runtime import older_symbols
from build_tools.flags import check_nvcc_flags, user_flags
from build_tools.settings import GLIBC, native_enabled
from build_tools.tools import find_compiler, find_ninja, find_nvcc, find_torch

FOR_ONE_MACHINE = ("-march=native", "-mavx512f", "-mavx2", "-mfma", "-mcpu=native", "-mpopcnt", "-mvaes", "-mno-sse4.1")
HARMLESS = ("-O0", "-flto", "-fopenmp-simd", "-frounding-math", "-ffp-contract=off", "-fno-fast-math", "-mtune=native")


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0", "2.9.1+cu128", "unknown"])
def test_old_torch_is_refused(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(PlatformError, match=re.escape(version)) as error:
        find_torch()
    assert "torch >= 2.10" in str(error.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1f2e3d", "2.13.0+cpu", "10.0"])
def test_new_torch_is_accepted(monkeypatch, tmp_path, version):
    fake = types.SimpleNamespace(__version__=version, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert find_torch() == tmp_path.resolve()


def test_no_compiler_on_path(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match=r"c\+\+, g\+\+, clang\+\+"):
        find_compiler()


def test_compiler_may_carry_a_launcher(monkeypatch, project):
    monkeypatch.setenv("CXX", f"'{project / 'fake-c++'}' g++ -m64")
    assert find_compiler() == [str(project / "fake-c++"), "g++", "-m64"]


def test_missing_ninja_is_explained(monkeypatch, tmp_path):
    def no_distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", no_distribution)
    with pytest.raises(PlatformError, match="pip install ninja"):
        find_ninja()


def test_ninja_package_is_found_off_path(monkeypatch, tmp_path):
    pytest.importorskip("ninja", reason="only the ninja of the system is installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(find_ninja(), os.X_OK)


def test_unknown_native_switch_is_refused(monkeypatch):
    monkeypatch.setenv("STOMPP_BUILD_NATIVE", "off")
    with pytest.raises(PlatformError, match="'off'"):
        native_enabled()


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_bad_max_jobs_is_refused(monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    command = BuildNative(setuptools.Distribution())
    with pytest.raises(PlatformError, match="MAX_JOBS"):
        command.run_ninja(["ninja"])


@pytest.mark.parametrize("variable", ["CXX", "CXXFLAGS", "LDFLAGS"])
def test_flags_that_change_results_or_processors_are_left_out_and_named(monkeypatch, capsys, variable, tmp_path):
    """Directly, in a response file that another one names, and behind a word that hands them to a part of clang."""
    (tmp_path / "outer").write_text(f"@{tmp_path / 'inner'} -g1")
    (tmp_path / "inner").write_text("'-Ofast' -m64")
    words = [*LOOSE, *FOR_ONE_MACHINE, *HARMLESS, f"@{tmp_path / 'outer'}", "-Xclang", "-ffast-math", "-Xclang", "-v"]
    before = ["c++"] if variable == "CXX" else []
    monkeypatch.setenv(variable, " ".join([*before, *words]))
    kept = find_compiler() if variable == "CXX" else user_flags(variable)
    assert kept == [*before, *HARMLESS, "-m64", "-g1", "-Xclang", "-v"]
    left_out = " ".join([*LOOSE, *FOR_ONE_MACHINE, "-Ofast", "-Xclang", "-ffast-math"])
    assert f"{variable}: {left_out} left out" in capsys.readouterr().out


def test_other_flags_of_nvcc_are_let_through(monkeypatch):
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-ccbin=/opt/bin/g++ -Xcompiler=-g,-O1 --ftz=false -lineinfo")
    check_nvcc_flags()


def test_build_requirements():
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = (.*)$", text, re.MULTILINE).group(1)
    minimum = re.search(r'^MIN_SETUPTOOLS = Version\("(.*)"\)', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert f"setuptools>={minimum[1]}" in requires
    assert "torch" not in requires


def architectures(text):
    return [(a.name, a.ptx) for a in parse_architectures(text)]


def test_architectures_in_torchs_syntax():
    assert architectures("8.0") == [("80", False)]
    assert architectures("12.0+PTX;9.0a 8.6") == [("86", False), ("90a", False), ("120", True)]
    assert architectures("9.0 9.0a; 9.0+PTX;") == [("90", True), ("90a", False)]
    assert architectures("10.0f;10.3a") == [("100f", False), ("103a", False)]
    assert [name for name, _ in architectures(DEFAULT_ARCHITECTURES)] == [*("75", "80", "86", "90a", "100", "120")]
    two = parse_architectures("8.6;12.0+PTX")
    assert [flag for a in two for flag in a.flags()] == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize("text", ["Ampere", "80", "8.0,9.0", "8.0+ptx", "8.", "sm_80", "9.0b", "8.0;all"])
def test_nonsense_among_architectures_is_refused(text):
    with pytest.raises(PlatformError, match="is no architecture; write them as in") as error:
        parse_architectures(text)
    assert repr(text) in str(error.value)


def test_architectures_without_binary_tensor_cores_are_left_out(capsys):
    assert architectures("6.1;7.0;8.0") == [("80", False)]
    assert "'6.1;7.0;8.0'" in capsys.readouterr().out
    with pytest.raises(PlatformError, match=r"'7\.0': name an architecture from 7\.5 on"):
        parse_architectures("7.0")


def test_an_architecture_that_nvcc_does_not_know_is_refused(monkeypatch, cuda_home):
    nvcc = str(cuda_home / "bin" / "nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;15.0")
    with pytest.raises(PlatformError, match="does not know 150"):
        requested_architectures(nvcc)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", " ")
    assert [a.number for a in requested_architectures(nvcc)] == [75, 80, 86, 90, 100, 120]


@pytest.mark.skipif(sys.platform != "linux", reason="the versions are glibc's")
def test_the_cuda_runtime_is_bound_to_what_an_old_glibc_has():
    found = older_symbols(find_compiler())
    for name, older in found.items():
        symbol, _, version = older.partition("@GLIBC_")
        assert symbol == name
        assert tuple(map(int, version.split("."))) <= GLIBC
    if tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))) >= (2, 34):
        assert {"dlopen", "dlsym", "pthread_create", "pthread_once", "sem_wait"} <= set(found)
    assert not {"printf", "malloc"} & set(found)


def test_each_family_of_kernels_is_compiled_for_its_architectures():
    families = ["75", "80", "90a", "100"]

    def names(source, text):
        wanted = parse_architectures(text)
        return [a.name for a in architectures_of(f"csrc/cuda/{source}.cu", wanted, families)]

    everything = DEFAULT_ARCHITECTURES
    assert names("product_sm75", everything) == ["75"]
    assert names("product_sm80", everything) == ["80", "86", "90a"]
    assert names("product_sm90a", everything) == ["90a"]
    assert names("product_sm100", everything) == ["100", "120"]
    assert names("bgemm", everything) == ["75", "80", "86", "90a", "100", "120"]
    assert names("product_sm90a", "9.0+PTX") == ["90a"]
    assert names("product_sm80", "9.0+PTX") == ["90"]
    assert names("product_sm90a", "8.0;10.0") == []
    assert names("product_sm75", "8.0") == []


def test_where_nvcc_is_looked_for(monkeypatch, cuda_home, tmp_path, capsys):
    monkeypatch.setenv("CUDA_HOME", str(cuda_home))
    assert find_nvcc() is None  # STOMPP_CUDA=0
    monkeypatch.delenv("STOMPP_CUDA")
    assert find_nvcc() == str(cuda_home / "bin" / "nvcc")
    monkeypatch.setenv("FAKE_RELEASE", "12.6")
    assert find_nvcc() is None
    assert re.search(r"_cuda left out: CUDA >= 12\.8 is needed, and .*nvcc is of 12\.6", capsys.readouterr().out)
    monkeypatch.setenv("STOMPP_CUDA", "1")
    with pytest.raises(PlatformError, match=r"STOMPP_CUDA=1 needs .* CUDA >= 12\.8 .* 12\.6\. STOMPP_CUDA=0"):
        find_nvcc()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match=r"neither in CUDA_HOME='.*' nor on PATH"):
        find_nvcc()
    monkeypatch.delenv("STOMPP_CUDA")
    assert find_nvcc() is None
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("FAKE_RELEASE")
    monkeypatch.setenv("PATH", os.pathsep.join([str(cuda_home / "bin"), os.defpath]))
    assert find_nvcc() == str(cuda_home / "bin" / "nvcc")


def test_machine_code_is_compressed_where_every_driver_that_runs_it_can_read_that():
    assert compression_flags((13, 0)) == ["--compress-mode=size"]
    assert compression_flags((12, 9)) == []


def test_nvcc_gets_the_host_compiler_and_its_flags(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    assert nvcc_command("nvcc", ["c++"]) == ["nvcc"]
    monkeypatch.setenv("CXX", "ccache g++-12 -m64")
    command = nvcc_command("nvcc", ["ccache", "g++-12", "-m64"])
    assert command == ["nvcc", "-ccbin=g++-12", "-Xcompiler=-m64"]
    assert to_host(["-Wp,-DX"]) == ["-Xcompiler=-Wp\\,-DX"]
