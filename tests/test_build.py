"""setup.py in a project of its own: clear errors, and compiler commands for any machine of the architecture."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
from build_project import LOOSE, ROOT, fake_torch, run_setup

pytestmark = pytest.mark.slow  # runs setup.py in processes of its own


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


def test_missing_compiler_is_explained(project):
    result = run_setup(project, "build_ext", CXX="/nonexistent/c++")
    assert_clear_error(result, "C++17 compiler", "/nonexistent/c++", "set CXX")


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


def test_a_backend_builds_a_wheel_out_of_the_source_distribution(project, tmp_path):
    """It runs setup.py by its path, which must find build_tools beside it; the wheel is without."""
    shutil.copy(ROOT / "MANIFEST.in", project)
    result = run_setup(project, "--quiet", "sdist", CXX="./fake-c++")
    assert result.returncode == 0, result.stdout
    [archive] = project.glob("dist/*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    [source] = tmp_path.glob("stompp_kernels-*")
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    variables = {"CXX": f"'{project}/fake-c++'", "PYTHONPATH": str(project / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(source / "dist" / done.stdout.split()[-1]) as wheel:
        names = wheel.namelist()
    assert "stompp_kernels/libstompp_kernels.so" in names
    assert not [name for name in names if name.startswith("build_tools")]


def test_the_numpy_module_needs_no_torch(project):
    fake_torch(project, "raise ImportError('no torch')")
    for name in ("csrc/numpy/core.cpp", "site/torch/include/pybind11/numpy.h"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    variables = {"CXX": "./fake-c++", "STOMPP_BUILD_NATIVE": "0"}
    assert_clear_error(
        run_setup(project, "build_ext", "--inplace", STOMPP_CORE="yes", **variables), "STOMPP_CORE='yes'"
    )
    result = run_setup(project, "build_ext", "--inplace", STOMPP_CORE="1", **variables)
    assert result.returncode == 0, result.stdout
    [built] = project.glob("stompp_kernels/*.so")
    assert re.fullmatch(r"_core\.cpython-.*\.so", built.name)
    commands = (project / "commands.log").read_text()
    assert sorted(re.findall(r"-c (\S+)", commands)) == ["csrc/core/signs/pack.cpp", "csrc/numpy/core.cpp"]
    assert not re.search("TORCH|-ltorch|-lpython", commands)


def test_headers_are_enough_where_no_torch_is_installed(project):
    fake_torch(project, "raise ImportError('no torch')")
    headers = project / "headers" / "torch"
    variables = {"CXX": "./fake-c++", "STOMPP_TORCH_HEADERS": str(headers)}
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert_clear_error(result, "STOMPP_TORCH_HEADERS", str(headers), "include/torch/csrc/stable/library.h")
    (headers / "include/torch/csrc/stable").mkdir(parents=True)
    (headers / "include/torch/csrc/stable/library.h").touch()
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    assert f"-isystem {headers}/include" in commands.replace("'", "")
    if sys.platform == "linux":
        assert re.search(r"-Wl,-soname,libtorch_cpu\.so -o build/native/\S+/torch/libtorch_cpu\.so", commands)
        assert re.search(r"-Lbuild/native/\S+/torch -Wl,--no-as-needed -ltorch_cpu -lc10", commands)


@pytest.mark.parametrize(("module", "tag"), [("0", "py3-none"), ("1", f"cp3{sys.version_info[1]}-cp3")])
def test_a_wheel_is_for_any_python_unless_it_has_the_numpy_module(project, module, tag):
    for name in ("csrc/numpy/core.cpp", "site/torch/include/pybind11/numpy.h"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    command = ["bdist_wheel", "--plat-name", "manylinux_2_28_x86_64"]
    result = run_setup(project, *command, CXX="./fake-c++", STOMPP_CORE=module)
    assert result.returncode == 0, result.stdout
    [wheel] = project.glob("dist/*.whl")
    assert wheel.name.startswith(f"stompp_kernels-0.1.0-{tag}")
    assert wheel.name.endswith("-manylinux_2_28_x86_64.whl")


def test_build_commands(project):
    """The whole way through ninja: what it compiles, with which flags, and what it then repeats."""
    variables = {"CXX": "./fake-c++", "CXXFLAGS": "-march=native -mavx2 -mcpu=native -m64 -g1"}
    log = project / "commands.log"

    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    assert [path.name for path in project.glob("stompp_kernels/*.so")] == ["libstompp_kernels.so"]
    commands = log.read_text().splitlines()
    compiles, [link] = [c for c in commands if " -c " in c], [c for c in commands if " -c " not in c]
    assert len(compiles) == 2
    for command in compiles:
        words = command.split()
        machine_flags = [word for word in words if word.startswith("-m")]
        assert machine_flags == ["-m64"]
        assert "-g1" in words
        assert "-ffp-contract=off" in words
        assert "-fvisibility=hidden" in words
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in words
        assert not re.search(r"include/python|pybind", command), "there is no Python in the library"
    assert "rpath" not in link
    assert "-lpython" not in link
    assert "-ltorch_cpu" in link.split()

    assert not list(project.glob(".ninja*"))

    assert rebuilt(project, "csrc/core/signs/pack.cpp", **variables) == ["csrc/core/signs/pack.cpp"]
    everything = ["csrc/core/signs/pack.cpp", "csrc/torch/bindings.cpp"]
    assert rebuilt(project, "csrc/core/base/bits.h", **variables) == everything
    assert rebuilt(project, "README.md", CXX="./fake-c++", CXXFLAGS="-O1") == everything


def ninja_file(project):
    [path] = project.glob("build/native/*/build.ninja")
    return path.read_text()


def rebuilt(project, changed, **variables):
    """The sources compiled by a build after a file has changed."""
    (project / "commands.log").unlink()
    later = time.time() + 10
    os.utime(project / changed, (later, later))
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    return sorted(re.findall(r"-c (\S+)", commands))


def test_a_response_file_that_cannot_be_read_is_named(project):
    result = run_setup(project, "build_ext", CXX="./fake-c++", CXXFLAGS="@absent.txt")
    assert_clear_error(result, "CXXFLAGS", "'@absent.txt'")


def test_variables_that_this_build_does_not_read_do_not_reach_the_compiler(project):
    names = ("CFLAGS", "CPPFLAGS", "ARCHFLAGS", "OPT", "BASECFLAGS", "CCSHARED", "LDSHARED", "CC", "FFLAGS")
    (project / "setup.cfg").write_text("[build_ext]\ndefine = UNWANTED\ninclude_dirs = -ffast-math\n")
    variables = dict.fromkeys(names, "-ffast-math")
    result = run_setup(project, "build_ext", "--inplace", CXX="./fake-c++ -Ofast", LDFLAGS="-ffast-math", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    assert "-fvisibility=hidden" in commands
    assert not re.search("fast|UNWANTED", commands)


# What each function gives shows one liberty that a compiler may take with floats.
ARITHMETIC = """
#include "core/base/bits.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int is_negative(float x) { return x < 0 ? 1 : 0; }
EXPORT int is_nan(float x) { return x != x; }
EXPORT float add_zero(float x) { return x + 0.0f; }
EXPORT float added(float a, float b) { return (a + b) - a; }
EXPORT float third(float x) { return x / 3.0f; }
EXPORT float product_plus(float a, float b, float c) { return a * b + c; }
"""


CHECK_ARITHMETIC = """
import ctypes, math, struct, sys
library = ctypes.CDLL(sys.argv[1])
def call(name, *values):
    function = getattr(library, name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(values)
    return function(*values)
library.is_negative.argtypes = library.is_nan.argtypes = [ctypes.c_float]
assert [library.is_nan(x) for x in (math.nan, -math.nan, math.inf, 0.0)] == [1, 1, 0, 0]
assert [library.is_negative(x) for x in (math.nan, -math.nan, -0.0, -1e-45, -math.inf)] == [0, 0, 0, 1, 1]
assert math.copysign(1, call("add_zero", -0.0)) == 1
assert call("added", 1e8, 1.0) == 0
single = lambda x: struct.unpack("f", struct.pack("f", x))[0]
for x in range(1, 100):
    assert call("third", x) == single(x / 3)
a = single(1 + 2.0**-12)
assert call("product_plus", a, a, -single(a * a)) == 0
assert 5e-324 * 1.0 > 0, "loading the library made the processor flush denormals"
"""


def real_project(project):
    """The project with a library that a real compiler can make: torch's are empty."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    (project / "csrc/core/signs/pack.cpp").write_text(ARITHMETIC)
    shutil.copy(ROOT / "csrc/core/base/bits.h", project / "csrc/core/base/bits.h")
    (project / "site/torch/lib").mkdir()
    for name in ("torch_cpu", "c10"):
        target = project / f"site/torch/lib/lib{name}.so"
        subprocess.run([compiler, "-shared", "-x", "c++", os.devnull, "-o", target], check=True)
    return compiler


def assert_ieee(project):
    library = project / "stompp_kernels" / "libstompp_kernels.so"
    done = subprocess.run([sys.executable, "-c", CHECK_ARITHMETIC, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
def test_a_library_built_under_such_flags_computes_as_ieee_says(project):
    compiler = real_project(project)
    flags = " ".join(flag for flag in (*LOOSE, "-march=native") if flag != "-fno-honor-nans")
    result = run_setup(
        project, "build_ext", "--inplace", CXX=f"{compiler} {flags}", CXXFLAGS=flags, LDFLAGS=flags, CFLAGS=flags
    )
    assert result.returncode == 0, result.stdout
    assert_ieee(project)


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-fno-signed-zeros", "-freciprocal-math", "-mavx512f"])
def test_flags_that_a_compiler_adds_by_itself_are_refused(project, flag):
    compiler = real_project(project)
    if flag.startswith("-m") and os.uname().machine != "x86_64":
        pytest.skip("a flag of x86-64")
    (project / "wrapped").write_text(f'#!/bin/sh\nexec {compiler} "$@" {flag}\n')
    (project / "wrapped").chmod(0o755)
    result = run_setup(project, "build_ext", "--inplace", CXX="./wrapped")
    expected = "picks instructions at run time" if flag == "-mavx512f" else "needs IEEE 754 arithmetic"
    assert_clear_error(result, expected, "did not compile")


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
def test_a_wrapper_that_begins_with_ofast_is_overruled(project):
    compiler = real_project(project)
    (project / "wrapped").write_text(f'#!/bin/sh\nexec {compiler} -Ofast "$@"\n')
    (project / "wrapped").chmod(0o755)
    result = run_setup(project, "build_ext", "--inplace", CXX="./wrapped")
    assert result.returncode == 0, result.stdout
    assert_ieee(project)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--use_fast_math", "--use_fast_math"),
        ("-O2 -ftz=true", "-ftz=true"),
        ("--prec-div false", "--prec-div false"),
        ("-Xcompiler -ffast-math", "-ffast-math"),
        ("-Xcompiler=-g,-march=native", "-march=native"),
    ],
)
@pytest.mark.parametrize("variable", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
def test_what_nvcc_reads_by_itself_is_refused_where_it_changes_results(project, cuda_home, variable, text, named):
    result = run_setup(
        project, "build_ext", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1", **{variable: text}
    )
    assert_clear_error(result, f"{variable} holds {named}, which nvcc reads by itself", "STOMPP_CUDA=0")


def test_wrong_switches_of_the_gpu_library(project):
    assert_clear_error(run_setup(project, "build_ext", STOMPP_CUDA="yes"), "STOMPP_CUDA='yes'")
    assert_clear_error(run_setup(project, "build_ext", STOMPP_CUDA="1", STOMPP_BUILD_NATIVE="0"), "contradict")


def test_build_commands_of_the_gpu_library(project, cuda_home):
    variables = {"CXX": "./fake-c++", "CXXFLAGS": "-march=native -g1", "CUDA_HOME": str(cuda_home), "STOMPP_CUDA": "1"}
    variables["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0a+PTX"
    log = project / "commands.log"

    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    assert (project / "stompp_kernels" / "_cuda.so").exists()
    commands = log.read_text().splitlines()
    by_nvcc = {re.search(r"-c (\S+)", c)[1].removeprefix("csrc/"): c for c in commands if "-ccbin=./fake-c++" in c}
    assert sorted(by_nvcc) == ["cuda/any.cu", "cuda/tile_sm80.cu", "cuda/tile_sm90a.cu", "torch/cuda/binding.cpp"]
    for command in by_nvcc.values():
        assert not re.search(r"-m(arch|avx)", command)
        for flag in ("-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden", "-Xcompiler=-g1", "-DNDEBUG", "-O3"):
            assert flag in command.split()
        defined = [word for word in command.split() if word.startswith("-DSTOMPP_")]
        assert defined == ["-DSTOMPP_CUDA_ARCHITECTURES=80_90a_90aptx", "-DSTOMPP_SM80", "-DSTOMPP_SM90A"]
    codes = {name: re.findall(r",code=(\w+)", command) for name, command in by_nvcc.items()}
    assert codes["cuda/any.cu"] == codes["cuda/tile_sm80.cu"] == ["sm_80", "sm_90a", "compute_90a"]
    assert codes["cuda/tile_sm90a.cu"] == ["sm_90a"]
    assert codes["torch/cuda/binding.cpp"] == ["sm_80"]
    [link] = [c for c in commands if c.split(" -o ")[-1].endswith("_cuda.so")]
    assert "/libcudart_static.a" in link
    assert "rpath" not in link
    assert "-lpython" not in link
    assert re.search(r"objcopy --redefine-syms=build/native/\S+/older_symbols\.txt", ninja_file(project))
    assert sum("check_shapes" in re.findall(r"-c (\S+)", c)[0] for c in commands if " -c " in c) == 1

    assert rebuilt(project, "csrc/cuda/any.cu", **variables) == ["csrc/cuda/any.cu"]


def test_the_gpu_library_goes_into_the_wheel(project, cuda_home):
    result = run_setup(project, "build", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1")
    assert result.returncode == 0, result.stdout
    [built] = project.glob("build/lib.*/stompp_kernels")
    names = sorted(path.name for path in built.iterdir())
    assert names == ["__init__.py", "_cuda.so", "libstompp_kernels.so", "py.typed"]


def test_a_gpu_library_without_the_static_runtime_is_explained(project, cuda_home):
    (cuda_home / "lib" / "libcudart_static.a").unlink()
    result = run_setup(project, "build_ext", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1")
    assert_clear_error(result, "libcudart_static.a", "STOMPP_CUDA=0")
